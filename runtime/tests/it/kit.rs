//! A small model for the tests, and a C compiler to build it with.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use transc_runtime::abi::{ABI_VERSION, ConstSpec, DESCRIPTOR_MAGIC, KernelFn, Launch, Symbol, Temp, Work};
use transc_runtime::mem::AlignedBytes;
use transc_runtime::{Arg, DType, Error, Expr, Model, Plan, Tensor, TensorSpec};

/// Most elements of a run.
pub const MAX: i64 = 4096;

fn bytes(n: i64) -> Expr {
    Expr::Mul(vec![Expr::Sym(0), Expr::Const(n)])
}

fn launch(kernel: u32, args: Vec<Arg>, node: &str) -> Launch {
    // Expensive enough to use several threads from 16 elements on.
    Launch {
        kernel,
        args,
        extent: Expr::Sym(0),
        cost_ns: bytes(1000),
        scratch_bytes: Expr::Const(100),
        block: 0,
        shared_bytes: Expr::Const(0),
        work: Work { macs: bytes(2), dtype: DType::F32, bytes: bytes(12) },
        node: node.into(),
    }
}

/// `y = ((a + b) + bias) * w`, for 1 to [`MAX`] elements; the bias is the second kernel's own.
pub fn plan() -> Plan {
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, dims: vec![Expr::Sym(0)] };
    Plan {
        abi_version: ABI_VERSION,
        name: "sum".into(),
        producer: "0.0".into(),
        features: vec![],
        device: None,
        kernels: vec!["add".into(), "scale".into()],
        symbols: vec![Symbol { name: "n".into(), min: 1, max: MAX }],
        inputs: vec![spec("a"), spec("b")],
        outputs: vec![spec("y")],
        temps: vec![Temp { size_bytes: bytes(4) }],
        consts: vec![ConstSpec { offset: 64, len_bytes: 4 * MAX as u64 }],
        launches: vec![
            launch(0, vec![Arg::Input(0), Arg::Input(1), Arg::Temp(0)], "layer/add"),
            launch(1, vec![Arg::Temp(0), Arg::Const(0), Arg::Output(0)], "layer/scale"),
        ],
        checks: vec![],
        ledger: vec![],
        facts: BTreeMap::new(),
    }
}

/// 64 bytes of something else, then `w[i] = i + 1`.
pub fn weights() -> Vec<u8> {
    let mut all = vec![0xff; 64];
    all.extend((1..=MAX).flat_map(|i| (i as f32).to_le_bytes()));
    all
}

/// What the model computes.
pub fn expected(a: &[f32], b: &[f32], bias: f32) -> Vec<f32> {
    a.iter().zip(b).enumerate().map(|(i, (a, b))| (a + b + bias) * (i + 1) as f32).collect()
}

/// Two inputs of `n` elements.
pub fn inputs(n: usize) -> (Tensor, Tensor) {
    let make = |f: &dyn Fn(usize) -> f32| Tensor::from_slice(&[n], &(0..n).map(f).collect::<Vec<_>>()).expect("fits");
    (make(&|i| i as f32 * 0.25), make(&|i| 3.0 - i as f32))
}

/// Checks one run of a model with a bias.
pub fn check(session: &transc_runtime::Session, n: usize, bias: f32) {
    let (a, b) = inputs(n);
    let outputs = session.run(&[("b", b.view()), ("a", a.view())]).expect("runs");
    assert_eq!(outputs[0].0, "y");
    let want = expected(a.as_slice().expect("f32"), b.as_slice().expect("f32"), bias);
    assert_eq!(outputs[0].1.as_slice::<f32>().expect("f32"), want);
}

extern "C" fn add(bufs: *const *mut u8, _: *const i64, scratch: *mut u8, lo: i64, hi: i64) -> i32 {
    // SAFETY: the plan gives three buffers of `n` floats, `hi <= n`, and 100 bytes of scratch.
    unsafe {
        scratch.write_bytes(lo as u8, 100);
        let [a, b, y] = [0, 1, 2].map(|i| (*bufs.add(i)).cast::<f32>());
        for i in lo as usize..hi as usize {
            *y.add(i) = *a.add(i) + *b.add(i);
        }
        i32::from(!(0..100).all(|i| *scratch.add(i) == lo as u8))
    }
}

/// Refuses to scale NaN, as a kernel that checks data would.
extern "C" fn scale(bufs: *const *mut u8, syms: *const i64, _: *mut u8, lo: i64, hi: i64) -> i32 {
    // SAFETY: the plan gives two buffers of `n` floats and a constant of `MAX`; `hi <= n`; there is one symbol.
    unsafe {
        let [x, w, y] = [0, 1, 2].map(|i| (*bufs.add(i)).cast::<f32>());
        assert!(hi <= *syms && w.addr().is_multiple_of(64) && x.addr().is_multiple_of(64));
        for i in lo as usize..hi as usize {
            if (*x.add(i)).is_nan() {
                return 1;
            }
            *y.add(i) = *x.add(i) * *w.add(i);
        }
        0
    }
}

/// The model with kernels in Rust and bias 0.
pub fn model(plan: Plan) -> Result<Model, Error> {
    let kernels: Vec<KernelFn> = vec![add, scale];
    let weights = AlignedBytes::copied(&weights())?;
    // SAFETY: the kernels stay inside the buffers of `plan()`; tests change it only in ways that keep these sizes or are refused.
    unsafe { Model::from_parts(plan, kernels, weights, Arc::new(())) }
}

/// True if there is a C compiler; says so if not.
pub fn have_cc() -> bool {
    let found = Command::new("cc").arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("skipped: no C compiler");
    }
    found
}

/// Runs a program and gives its stdout.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{program} {args:?}\n{text}\n{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// Compiles `model.c` with a bias to `out`, with further options.
pub fn compile_model(out: &Path, bias: &str, options: &[&str]) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/model.c");
    let (magic, abi, bias) =
        (format!("-DMAGIC=UINT64_C({DESCRIPTOR_MAGIC})"), format!("-DABI={ABI_VERSION}"), format!("-DBIAS={bias}"));
    let mut args = vec!["-O1", "-Wall", "-Werror", "-fPIC", &magic, &abi, &bias, source, "-o", out.to_str().expect("utf-8")];
    args.extend(options);
    run("cc", &args);
}

/// Writes plan and weights as C arrays.
pub fn write_model_data(path: &Path) {
    let array = |name: &str, bytes: &[u8]| {
        let list: Vec<String> = bytes.iter().map(u8::to_string).collect();
        format!("static const _Alignas(64) uint8_t {name}[] = {{{}}};\n", list.join(","))
    };
    let text = array("plan", &plan().encode().expect("encodes")) + &array("weights", &weights());
    std::fs::write(path, text).expect("written");
}
