//! The ways to run a model: the code of every backend, and the loops in their interpreter, for a processor and for devices.

use transc::ir::Module;
use transc::ir::diag::{Diagnose, Fault};
use transc::ir::interp::Tensor;
use transc::{Backend, Compiler, Target};

use crate::kit;

/// Why a way gave no values.
pub enum Failure {
    /// The compiler says that it has no code for this: no fault, but counted.
    Refused(String),
    Fault(String),
}

impl<E: Into<transc::Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        let e = e.into();
        let problems = e.diagnostics();
        if problems.iter().all(|d| d.fault == Fault::Unsupported) {
            Failure::Refused(problems.first().map_or_else(String::new, |d| format!("{}: {}", d.code, d.message)))
        } else {
            Failure::Fault(e.to_string())
        }
    }
}

/// A model made ready: outputs from inputs, both in the module's order.
pub type Ready = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>, Failure>>;

/// A way to run a module.
pub struct Way {
    pub name: &'static str,
    /// True for the interpreter of the loops, which is a thousand times slower than code.
    pub simulated: bool,
    /// Makes a module ready.
    pub prepare: Box<dyn Fn(&Module) -> Result<Ready, Failure>>,
}

impl Way {
    pub fn run(&self, m: &Module, inputs: &[Tensor]) -> Result<Vec<Tensor>, Failure> {
        (self.prepare)(m)?(inputs)
    }
}

/// The ways of this build, with LLVM's optimiser at an effort. A new one is one row.
pub fn ways(opt_level: u8) -> Vec<Way> {
    let compiled = |b: Backend| Way { name: b.name(), simulated: false, prepare: Box::new(move |m| compiled(b, opt_level, m)) };
    let mut all: Vec<Way> = Backend::built().map(compiled).collect();
    let simulated = |name, on: Vec<Target>| Way { name, simulated: true, prepare: Box::new(move |m| simulated(&on, m)) };
    all.push(simulated("loops", vec![Target::X86_64_V3]));
    all.push(simulated("ptx", vec![Target::CUDA_SM_80, Target::CUDA_SM_90A]));
    all
}

fn compiled(b: Backend, opt_level: u8, m: &Module) -> Result<Ready, Failure> {
    let session = Compiler::new().backend(b).opt_level(opt_level).threads(1).compile(m)?.session(1)?;
    let names: Vec<String> = m.main.params().iter().map(|(n, _)| n.clone()).collect();
    Ok(Box::new(move |inputs| {
        let named: Vec<(String, Tensor)> = names.iter().cloned().zip(inputs.iter().cloned()).collect();
        Ok(kit::run(&session, &named)?.into_iter().map(|(_, t)| t).collect())
    }))
}

/// The loop IR for targets in its own interpreter, which also watches every access, and for a device every race. The targets differ in
/// what stands below the loops: one run speaks for all of them.
fn simulated(targets: &[Target], m: &Module) -> Result<Ready, Failure> {
    let lower = |t: &Target| Compiler::new().target(t.clone()).lower(m);
    let program = lower(&targets[0])?;
    for t in &targets[1..] {
        if lower(t)?.to_string() != program.to_string() {
            return Err(Failure::Fault(format!("the loops for {} are not those for {}", t.name(), targets[0].name())));
        }
    }
    let program = program.expanded()?;
    Ok(Box::new(move |inputs| transc::simulate(&program, inputs).map_err(|e| Failure::Fault(e.to_string()))))
}

/// The arrays that a module asks for, in its order.
pub fn inputs(m: &Module, arrays: &[(String, Tensor)]) -> Vec<Tensor> {
    let find = |n: &String| arrays.iter().find(|(a, _)| a == n).map(|(_, t)| t.clone());
    m.main.params().iter().map(|(n, _)| find(n).unwrap_or_else(|| panic!("an array for {n}"))).collect()
}
