//! The loop-IR interpreter: what it computes, and every kind of fault that it reports.

use transc_ir::loops::interp::{Buffer, LoopError, launch};
use transc_ir::loops::{
    Access, Buf, Inst, KernelBuilder, Matrix, MatrixDot, ReduceOp, Reg, Status, Stmt, TargetInst, Ty, Unroll, verify,
};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{DType, Dim, Symbol};

fn floats(v: &[f32]) -> Buffer {
    Buffer::new(v.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn values(b: &Buffer) -> Vec<f32> {
    b.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A kernel of `blocks` blocks of 4 threads with an output of one float per thread.
fn block(blocks: i64, body: impl FnOnce(&mut KernelBuilder, Buf, Reg)) -> Result<Vec<f32>, LoopError> {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(blocks));
    kb.set_block(4);
    let y = kb.param("y", DType::F32, Access::Write);
    let t = kb.thread();
    body(&mut kb, y, t);
    let mut memory = [Buffer::undefined(4 * 4 * blocks as usize)];
    launch(&kb.finish(), &[], &mut memory, &[0])?;
    Ok(values(&memory[0]))
}

/// Stores the thread's number in shared memory, and its neighbour's number in the output.
fn rotate(kb: &mut KernelBuilder, y: Buf, t: Reg, barrier: bool) {
    let s = kb.shared(DType::F32, Dim::from(4));
    let x = kb.cast(DType::F32, t);
    kb.store(s, t, x);
    if barrier {
        kb.barrier();
    }
    let (one, four, lo) = (kb.index(1), kb.index(4), kb.lo());
    let next = kb.add(t, one);
    let next = kb.bin(BinOp::Rem, next, four);
    let x = kb.load(s, next, 1);
    let at = kb.mul(lo, four);
    let at = kb.add(at, t);
    kb.store(y, at, x);
}

#[test]
fn threads_of_a_block_share_memory() {
    let out = block(2, |kb, y, t| rotate(kb, y, t, true)).expect("no fault");
    assert_eq!(out, [1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 0.0]);
}

#[test]
fn a_missing_barrier_is_a_race() {
    let e = block(1, |kb, y, t| rotate(kb, y, t, false)).expect_err("a race");
    assert!(matches!(e, LoopError::Race { buf: Buf::Local(0), first, second, .. } if first.thread != second.thread), "{e}");
}

#[test]
fn blocks_that_write_one_element_are_a_race() {
    let e = block(2, |kb, y, t| {
        let x = kb.cast(DType::F32, t);
        kb.store(y, t, x);
    });
    assert!(matches!(e, Err(LoopError::Race { buf: Buf::Param(0), .. })), "{e:?}");
}

#[test]
fn a_barrier_that_some_threads_miss_is_reported() {
    let e = block(1, |kb, _, t| {
        let two = kb.index(2);
        let c = kb.bin(BinOp::Lt, t, two);
        kb.if_(c, |kb| kb.barrier(), |_| {});
    });
    assert_eq!(e, Err(LoopError::DivergentBarrier { unit: 0, arrived: 2, threads: 4 }));
    // A loop that threads leave at different turns.
    let e = block(1, |kb, _, t| {
        let zero = kb.index(0);
        kb.for_(zero, t, 1, Unroll::No, |kb, _| kb.barrier());
    });
    assert!(matches!(e, Err(LoopError::DivergentBarrier { arrived: 3, .. })), "{e:?}");
}

#[test]
fn accesses_outside_and_of_undefined_memory_are_reported() {
    let e = block(1, |kb, y, t| {
        let one = kb.index(1);
        let at = kb.add(t, one);
        let x = kb.num(Ty::F32, 0.0);
        kb.store(y, at, x);
    });
    assert!(matches!(e, Err(LoopError::OutOfBounds { index: 4, len: 4, at, .. }) if at.thread == 3), "{e:?}");
    let e = block(1, |kb, y, t| {
        let l = kb.local(DType::F32, Dim::from(1));
        let zero = kb.index(0);
        let x = kb.load(l, zero, 1);
        kb.store(y, t, x);
    });
    assert!(matches!(e, Err(LoopError::Undefined { buf: Buf::Local(0), index: 0, .. })), "{e:?}");
    let e = block(1, |kb, _, t| {
        let zero = kb.index(0);
        kb.bin(BinOp::Div, t, zero);
    });
    assert!(matches!(e, Err(LoopError::DivisionByZero(_))), "{e:?}");
    let e = block(1, |kb, _, t| {
        let two = kb.index(2);
        let c = kb.bin(BinOp::Eq, t, two);
        kb.fail_if(c, Status::IndexOutOfRange);
    });
    assert_eq!(e, Err(LoopError::Stopped(Status::IndexOutOfRange)));
}

#[test]
fn malformed_kernels_and_arguments_are_refused() {
    let mut kb = KernelBuilder::new("k", vec![Symbol::new("N")], Dim::sym("N"));
    let x = kb.param("x", DType::F32, Access::Read);
    let zero = kb.index(0);
    let v = kb.load(x, zero, 1);
    kb.store(x, zero, v);
    kb.barrier();
    let mut k = kb.finish();
    k.body.push(Stmt::Let(Reg(0), Inst::Bin(BinOp::Add, v, zero)));
    let Err(LoopError::Malformed(all)) = launch(&k, &[1], &mut [floats(&[0.0])], &[0]) else { panic!("it is malformed") };
    // The store to an input, the barrier on the host, the operands of two types.
    assert_eq!(all.len(), 3, "{all:?}");

    let mut kb = KernelBuilder::new("k", vec![Symbol::new("N")], Dim::sym("N"));
    kb.param("x", DType::F32, Access::Read);
    kb.param("y", DType::F32, Access::Write);
    let k = kb.finish();
    for (syms, args) in [(&[][..], &[0, 1][..]), (&[1], &[0]), (&[1], &[0, 9]), (&[1], &[1, 1]), (&[-1], &[0, 1])] {
        let e = launch(&k, syms, &mut [floats(&[0.0]), floats(&[0.0])], args);
        assert!(matches!(e, Err(LoopError::Arguments(_))), "{e:?}");
    }
}

#[test]
fn host_code_does_its_share_with_vectors_and_counts() {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let (x, y) = (kb.param("x", DType::F32, Access::Read), kb.param("y", DType::F32, Access::Write));
    let (zero, three) = (kb.index(0), kb.index(3));
    let v = kb.load_count(x, zero, 4, three);
    let d = kb.add(v, v);
    kb.store_count(y, zero, d, three);
    let sum = kb.reduce(ReduceOp::Add, v);
    kb.store(y, three, sum);
    let mut memory = [floats(&[1.0, 2.0, 3.0]), Buffer::undefined(16)];
    launch(&kb.finish(), &[], &mut memory, &[0, 1]).expect("no fault");
    assert_eq!(values(&memory[1]), [2.0, 4.0, 6.0, 6.0]);
}

#[test]
fn target_instructions_have_their_stated_meaning() {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let y = kb.param("y", DType::I32, Access::Write);
    let splat = |kb: &mut KernelBuilder, d: DType, v: i64, n: u16| {
        let r = kb.lit(Literal::from_i64(d, v));
        kb.splat(n, r)
    };
    let (acc, a, b) = (splat(&mut kb, DType::I32, 5, 2), splat(&mut kb, DType::U8, 255, 8), splat(&mut kb, DType::I8, -128, 8));
    let sum = kb.target(TargetInst::VpDpBusd, &[acc, a, b]);
    let zero = kb.index(0);
    kb.store(y, zero, sum);
    let mut memory = [Buffer::undefined(8)];
    launch(&kb.finish(), &[], &mut memory, &[0]).expect("no fault");
    let want = 5 - 4 * 255 * 128i32;
    assert_eq!(memory[0].data, [want, want].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    // The one pair of products whose sum does not fit wraps.
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let y = kb.param("y", DType::I32, Access::Write);
    let least = splat(&mut kb, DType::I16, -32768, 4);
    let acc = splat(&mut kb, DType::I32, 5, 2);
    let sum = kb.target(TargetInst::VpDpWssd, &[acc, least, least]);
    let zero = kb.index(0);
    kb.store(y, zero, sum);
    let mut memory = [Buffer::undefined(8)];
    launch(&kb.finish(), &[], &mut memory, &[0]).expect("no fault");
    let want = i32::MIN + 5;
    assert_eq!(memory[0].data, [want, want].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
}

#[test]
fn floats_are_packed_to_bytes_as_stated() {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let (x, y) = (kb.param("x", DType::F32, Access::Read), kb.param("y", DType::U8, Access::Write));
    let four = [0, 8, 16, 24].map(|at| {
        let at = kb.index(at);
        let x = kb.load(x, at, 8);
        kb.target(TargetInst::VCvtPs2Dq, &[x])
    });
    let words = [0, 2].map(|i| kb.target(TargetInst::VPackSsDw, &[four[i], four[i + 1]]));
    let bytes = kb.target(TargetInst::VPackUsWb, &words);
    let zero = kb.index(0);
    kb.store(y, zero, bytes);
    let kernel = kb.finish();
    verify(&kernel).expect("well formed");
    let mut given: Vec<f32> = (0..32).map(|i| i as f32).collect();
    (given[0], given[1], given[2], given[3]) = (f32::NAN, 3e9, -3e9, 300.0);
    (given[4], given[5], given[6]) = (2.5, 3.5, -0.4);
    let mut memory = [floats(&given), Buffer::undefined(32)];
    launch(&kernel, &[], &mut memory, &[0, 1]).expect("no fault");
    // Both NaN and what is too large become the least integer, which is no byte.
    let mut want: Vec<u8> = (0..32).collect();
    want[..7].copy_from_slice(&[0, 0, 0, 255, 2, 4, 0]);
    let want: Vec<u8> =
        [0, 1].iter().flat_map(|half| (0..4).map(move |v| 8 * v + 4 * half)).flat_map(|at| want[at..at + 4].to_vec()).collect();
    assert_eq!(memory[1].data, want);
}

/// One product of matrix registers: `f` gives the elements of the operands by row and place in the row.
fn matrix_product(dot: MatrixDot, dtypes: [DType; 3], f: [&dyn Fn(usize, usize) -> u64; 3]) -> Buffer {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let [a, b] = [0, 1].map(|i| kb.param("x", dtypes[i], Access::Read));
    let y = kb.param("y", dtypes[2], Access::ReadWrite);
    let registers = [kb.matrix(), kb.matrix(), kb.matrix()];
    let mut memory = Vec::new();
    let places: Vec<_> = dtypes
        .iter()
        .zip(f)
        .map(|(d, f)| {
            let (size, stride) = (d.size_bytes(), 64 / d.size_bytes() + 3);
            let bytes = (0..16 * stride).flat_map(|i| f(i / stride, i % stride).to_le_bytes()[..size].to_vec());
            memory.push(Buffer::new(bytes.collect()));
            (kb.index(0), kb.index(stride as i64))
        })
        .collect();
    for ((buf, register), (at, stride)) in [a, b, y].into_iter().zip(registers).zip(&places) {
        kb.matrix_load(register, buf, *at, *stride);
    }
    kb.matrix_dot(dot, registers[2], registers[0], registers[1]);
    kb.matrix_store(y, places[2].0, places[2].1, registers[2]);
    launch(&kb.finish(), &[], &mut memory, &[0, 1, 2]).expect("no fault");
    memory.remove(2)
}

#[test]
fn products_of_matrix_registers_have_their_stated_meaning() {
    let (a, b) = (|r: usize, i: usize| (r * 64 + i) as u8, |r: usize, i: usize| (r * 29 + i * 7) as u8);
    let got = matrix_product(
        MatrixDot::Bytes,
        [DType::U8, DType::I8, DType::I32],
        [&|r, i| a(r, i).into(), &|r, i| b(r, i).into(), &|r, i| (r * i) as u64],
    );
    for (i, j) in [(0, 0), (3, 15), (15, 7)] {
        let sum: i32 = (0..64).map(|k| i32::from(a(i, k)) * i32::from(b(k / 4, j * 4 + k % 4) as i8)).sum();
        let at = (i * 19 + j) * 4;
        assert_eq!(got.data[at..at + 4], (sum + (i * j) as i32).to_le_bytes(), "[{i}, {j}]");
    }
    // 2^24 + 1 - 2^24 is 0 in a sum of 24 bits, but the even and the odd elements are summed apart: what is left of 1 + 1 is 2.
    let bf16 = |v: f32| u64::from(v.to_bits() >> 16);
    let row = |_: usize, i: usize| bf16([4096.0, 1.0, 4096.0, 1.0].get(i).copied().unwrap_or(0.0));
    let column = |r: usize, i: usize| bf16(if i % 2 == 1 { 1.0 } else { [4096.0, -4096.0].get(r).copied().unwrap_or(0.0) });
    let got = matrix_product(MatrixDot::Bf16, [DType::Bf16, DType::Bf16, DType::F32], [&row, &column, &|_, _| 0]);
    assert_eq!(got.data[..4], 2.0f32.to_le_bytes());
}

#[test]
fn matrix_registers_are_checked() {
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let x = kb.param("x", DType::I8, Access::Read);
    let registers: Vec<Matrix> = (0..9).map(|_| kb.matrix()).collect();
    let (at, stride) = (kb.index(0), kb.index(63));
    kb.matrix_load(registers[0], x, at, stride);
    kb.matrix_store(x, at, stride, registers[0]);
    kb.matrix_dot(MatrixDot::Bytes, registers[0], registers[1], registers[1]);
    let problems = verify(&kb.clone().finish()).expect_err("three problems");
    assert_eq!(problems.len(), 3, "{problems:?}");
    let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
    let x = kb.param("x", DType::I8, Access::Read);
    let (m, at, stride) = (kb.matrix(), kb.index(0), kb.index(63));
    kb.matrix_load(m, x, at, stride);
    let fault = launch(&kb.finish(), &[], &mut [Buffer::new(vec![0; 16 * 63])], &[0]);
    assert!(matches!(fault, Err(LoopError::OutOfBounds { index: 1008, .. })), "{fault:?}");
}
