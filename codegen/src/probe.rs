//! Programs that measure a machine: arithmetic that stays in registers, and a sum that streams through memory.
//!
//! They are made by the backend that makes the models' code, so the peak is that of code as models can have it.

use transc_ir::loops::{Access, KernelBuilder, Matrix, MatrixDot, MatrixInst, ReduceOp, Reg, TargetInst, Ty, Unroll, Var};
use transc_ir::scalar::Literal;
use transc_ir::tensor::Loc;
use transc_ir::types::{DType, Dim, Ranges, TensorType};

use crate::Target;
use crate::program::{Arg, Launch, Program, Work};

/// Chains of dependent steps: enough for two units with a latency of six cycles, few enough for 16 registers.
const CHAINS: i64 = 12;
/// Steps of each chain in a unit.
const STEPS: i64 = 20_000;

/// A kind of arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arithmetic {
    /// Multiply-adds of `f32`.
    F32,
    /// Pairs of `bf16` summed in `f32`.
    Bf16,
    /// Quads of bytes summed in `i32`.
    Int8,
}

impl Arithmetic {
    /// All kinds.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8];

    /// The kind that multiplies elements of a type.
    pub fn of(dtype: DType) -> Arithmetic {
        match dtype {
            DType::Bf16 => Arithmetic::Bf16,
            DType::U8 | DType::I8 => Arithmetic::Int8,
            _ => Arithmetic::F32,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::F32 => "f32",
            Arithmetic::Bf16 => "bf16",
            Arithmetic::Int8 => "int8",
        }
    }

    fn types(self, lanes: u16) -> (Ty, Ty, Ty) {
        match self {
            Arithmetic::F32 => (Ty::vector(DType::F32, lanes), Ty::vector(DType::F32, lanes), Ty::vector(DType::F32, lanes)),
            Arithmetic::Bf16 => {
                (Ty::vector(DType::F32, lanes), Ty::vector(DType::Bf16, 2 * lanes), Ty::vector(DType::Bf16, 2 * lanes))
            }
            Arithmetic::Int8 => {
                (Ty::vector(DType::I32, lanes), Ty::vector(DType::U8, 4 * lanes), Ty::vector(DType::I8, 4 * lanes))
            }
        }
    }
}

/// Units of arithmetic in registers, and the multiply-adds of one.
pub fn arithmetic(kind: Arithmetic, target: &Target, units: usize) -> (Program, u64) {
    match kind {
        Arithmetic::Bf16 if target.has_matrices() => matrix_steps(MatrixDot::Bf16, kind, units),
        Arithmetic::Int8 if target.has_matrices() => matrix_steps(MatrixDot::Bytes, kind, units),
        _ => steps(kind, target, units, STEPS),
    }
}

/// Units of products of matrix registers, two by two.
fn matrix_steps(dot: MatrixDot, kind: Arithmetic, units: usize) -> (Program, u64) {
    const SIDE: usize = 2;
    /// As long as [`STEPS`] of vectors, about.
    const TURNS: i64 = STEPS / 10;
    let (sum, left, right) = kind.types(MatrixInst::ROWS as u16);
    let mut kb = KernelBuilder::new(&format!("peak_{}", kind.name()), Vec::new(), Dim::from(units));
    let [a, b] = [("a", left), ("b", right)].map(|(n, ty)| kb.param(n, ty.dtype, Access::Read));
    let y = kb.param("y", sum.dtype, Access::Write);
    let matrices: Vec<Matrix> = (0..Matrix::COUNT).map(|_| kb.matrix()).collect();
    let (sums, operands) = matrices.split_at(SIDE * SIDE);
    let (rows, columns) = operands.split_at(SIDE);
    let len = MatrixInst::ROWS * usize::from(sum.lanes);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let (zero, end) = (kb.index(0), kb.index(TURNS));
        let (row, result, all) = (kb.index(left.lanes.into()), kb.index(sum.lanes.into()), kb.index(len as i64));
        rows.iter().for_each(|m| kb.matrix_load(*m, a, zero, row));
        columns.iter().for_each(|m| kb.matrix_load(*m, b, zero, row));
        sums.iter().for_each(|m| kb.matrix_zero(*m));
        kb.for_(zero, end, 1, Unroll::No, |kb, _| {
            for (i, sum) in sums.iter().enumerate() {
                kb.matrix_dot(dot, *sum, rows[i / SIDE], columns[i % SIDE]);
            }
        });
        let at = kb.mul(unit, all);
        kb.matrix_store(y, at, result, sums[0]);
    });
    let ty = |dtype, n: usize| TensorType::new(dtype, vec![Dim::from(n)]);
    let operand = MatrixInst::ROWS * usize::from(left.lanes);
    let inputs = vec![("a".to_string(), ty(left.dtype, operand)), ("b".to_string(), ty(right.dtype, operand))];
    (program(kb, inputs, ty(sum.dtype, units * len)), (sums.len() * len * usize::from(left.lanes)) as u64 * TURNS as u64)
}

/// Units of `steps` steps in each chain.
fn steps(kind: Arithmetic, target: &Target, units: usize, steps: i64) -> (Program, u64) {
    let lanes = target.lanes();
    let (sum, left, right) = kind.types(lanes);
    let mut kb = KernelBuilder::new(&format!("peak_{}", kind.name()), Vec::new(), Dim::from(units));
    let [a, b, c] = [("a", left), ("b", right), ("c", sum)].map(|(n, ty)| kb.param(n, ty.dtype, Access::Read));
    let y = kb.param("y", sum.dtype, Access::Write);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let zero = kb.index(0);
        let (x, w) = (kb.load(a, zero, left.lanes), kb.load(b, zero, right.lanes));
        let chains: Vec<Var> = (0..CHAINS)
            .map(|i| {
                // Different starts: equal chains could be merged.
                let at = kb.index(i * i64::from(lanes));
                let start = kb.load(c, at, lanes);
                kb.var(start)
            })
            .collect();
        let end = kb.index(steps);
        kb.for_(zero, end, 1, Unroll::No, |kb, _| {
            for chain in &chains {
                let old = kb.get(*chain);
                let new = step(kb, kind, old, x, w);
                kb.set(*chain, new);
            }
        });
        let one = total(kb, &chains);
        kb.store(y, unit, one);
    });
    let per_step = u64::from(lanes) * u64::from(left.lanes / lanes);
    let ty = |dtype, n: usize| TensorType::new(dtype, vec![Dim::from(n)]);
    let inputs = vec![
        ("a".to_string(), ty(left.dtype, left.lanes.into())),
        ("b".to_string(), ty(right.dtype, right.lanes.into())),
        ("c".to_string(), ty(sum.dtype, CHAINS as usize * usize::from(lanes))),
    ];
    (program(kb, inputs, ty(sum.dtype, units)), per_step * (CHAINS * steps) as u64)
}

fn step(kb: &mut KernelBuilder, kind: Arithmetic, sum: Reg, x: Reg, w: Reg) -> Reg {
    match kind {
        Arithmetic::F32 => kb.fma(x, w, sum),
        Arithmetic::Bf16 => kb.target(TargetInst::VDpBf16Ps, &[sum, x, w]),
        Arithmetic::Int8 => kb.target(TargetInst::VpDpBusd, &[sum, x, w]),
    }
}

/// The sum of all lanes of some accumulators.
fn total(kb: &mut KernelBuilder, of: &[Var]) -> Reg {
    let mut all = kb.get(of[0]);
    for var in &of[1..] {
        let next = kb.get(*var);
        all = kb.add(all, next);
    }
    kb.reduce(ReduceOp::Add, all)
}

/// The sum of `units` blocks of `block` floats, one result per block.
pub fn stream(target: &Target, units: usize, block: usize) -> Program {
    let lanes = target.lanes();
    let mut kb = KernelBuilder::new("stream", Vec::new(), Dim::from(units));
    let a = kb.param("a", DType::F32, Access::Read);
    let y = kb.param("y", DType::F32, Access::Write);
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let len = kb.index(block as i64);
        let (start, zero) = (kb.mul(unit, len), kb.lit(Literal::f32(0.0)));
        let sums: Vec<Var> = (0..4)
            .map(|_| {
                let zero = kb.splat(lanes, zero);
                kb.var(zero)
            })
            .collect();
        let from = kb.index(0);
        kb.for_(from, len, 4 * i64::from(lanes), Unroll::No, |kb, i| {
            for (n, sum) in sums.iter().enumerate() {
                let at = kb.index(n as i64 * i64::from(lanes));
                let at = kb.add(i, at);
                let at = kb.add(start, at);
                let x = kb.load(a, at, lanes);
                let old = kb.get(*sum);
                let new = kb.add(old, x);
                kb.set(*sum, new);
            }
        });
        let one = total(kb, &sums);
        kb.store(y, unit, one);
    });
    let ty = |n: usize| TensorType::new(DType::F32, vec![Dim::from(n)]);
    program(kb, vec![("a".into(), ty(units * block))], ty(units))
}

/// Launches of one unit per thread, some microseconds each.
pub fn handover(target: &Target, launches: usize, threads: usize) -> Program {
    let (mut p, _) = steps(Arithmetic::F32, target, threads, 1000);
    p.launches = vec![p.launches[0].clone(); launches];
    p
}

/// A program of one launch that is worth all threads.
fn program(kb: KernelBuilder, inputs: Vec<(String, TensorType)>, output: TensorType) -> Program {
    let args = (0..inputs.len()).map(Arg::Input).chain([Arg::Output(0)]).collect();
    let work = Work { macs: Dim::from(0), dtype: DType::F32, bytes: Dim::from(0) };
    let kernel = kb.finish();
    Program {
        name: kernel.name.clone(),
        symbols: Ranges::new(),
        constraints: Vec::new(),
        inputs,
        outputs: vec![("y".into(), output)],
        temps: Vec::new(),
        consts: Vec::new(),
        kernels: vec![kernel],
        launches: vec![Launch {
            kernel: 0,
            args,
            cost_ns: Dim::from(i64::from(i32::MAX)),
            work,
            tunable: None,
            loc: Loc::new("probe"),
        }],
        layers: Vec::new(),
    }
}
