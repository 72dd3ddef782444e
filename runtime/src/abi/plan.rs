//! The plan of a compiled model.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ABI_VERSION, DType, Expr};
use crate::{Error, mem};

/// Threads that a block may have.
const MAX_BLOCK: u32 = 1024;

/// A symbolic dim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Name, unique in the plan.
    pub name: String,
    /// Smallest value, at least 0.
    pub min: i64,
    /// Largest value.
    pub max: i64,
}

/// An input or output: a dense row-major tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Name, unique among the inputs or among the outputs.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents in elements, outermost first; empty for rank 0.
    pub dims: Vec<Expr>,
}

/// A buffer between launches, alive from the first launch that names it to the last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Temp {
    /// Size.
    pub size_bytes: Expr,
}

/// A packed constant inside the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstSpec {
    /// First byte, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arg {
    /// An input of the model.
    Input(u32),
    /// An output of the model.
    Output(u32),
    /// A buffer between launches.
    Temp(u32),
    /// A packed constant.
    Const(u32),
}

/// One call of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Position in the kernel table.
    pub kernel: u32,
    /// Arguments in the order of the kernel's parameters.
    pub args: Vec<Arg>,
    /// Number of independent units.
    pub extent: Expr,
    /// Estimated nanoseconds of all units together on one thread; decides how many threads take part.
    pub cost_ns: Expr,
    /// Scratch memory per thread.
    pub scratch_bytes: Expr,
    /// Threads of a block, for device code, whose units are blocks; 0 for host code.
    pub block: u32,
    /// Shared memory of a block.
    pub shared_bytes: Expr,
    /// What all units together compute and move, for reports.
    pub work: Work,
    /// The user's node.
    pub node: String,
}

/// Arithmetic and memory traffic of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Multiply-adds of products, zeros that a kernel skips not counted.
    pub macs: Expr,
    /// Element type that is multiplied.
    pub dtype: DType,
    /// Bytes of all operands and results, each once; of a table only the rows that are looked up.
    pub bytes: Expr,
}

/// Code for a device instead of the host. Its kernels are entry points, which take one address per argument, those of the scratch memory of all
/// threads and of a status word, and the values of the symbols, 8 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCode {
    /// Architecture, such as `sm_80`.
    pub arch: String,
}

/// Two expressions that must be equal once the symbols are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Left side.
    pub lhs: Expr,
    /// Right side.
    pub rhs: Expr,
    /// The condition in words.
    pub message: String,
}

/// A lossy step that the model was compiled with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Where.
    pub site: String,
    /// Which codec.
    pub codec: String,
    /// Its parameters.
    pub parameters: String,
    /// Measured error on the calibration inputs, if there were any.
    pub error: Option<f64>,
}

/// Everything that a session needs besides code and weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`ABI_VERSION`] of the compiler.
    pub abi_version: u32,
    /// Name of the model.
    pub name: String,
    /// Version of the compiler.
    pub producer: String,
    /// Processor features that the code uses, as Rust names them (`avx512f`).
    pub features: Vec<String>,
    /// The device that the code is for; none for the host.
    pub device: Option<DeviceCode>,
    /// Names of the kernels, in the order of the kernel table.
    pub kernels: Vec<String>,
    /// Symbolic dims.
    pub symbols: Vec<Symbol>,
    /// Inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs.
    pub outputs: Vec<TensorSpec>,
    /// Buffers between launches.
    pub temps: Vec<Temp>,
    /// Packed constants.
    pub consts: Vec<ConstSpec>,
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// Conditions on the dims.
    pub checks: Vec<Check>,
    /// Lossy steps.
    pub ledger: Vec<LedgerEntry>,
    /// Facts of the compilation for people.
    pub facts: BTreeMap<String, String>,
}

impl Plan {
    /// The bytes of the artefact's plan section.
    ///
    /// # Errors
    /// [`Error::BadPlan`]; never for a plan that [`Plan::validate`] accepts.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        postcard::to_allocvec(self).map_err(|e| Error::BadPlan(e.to_string()))
    }

    /// Reads the bytes of [`Plan::encode`]. The result is not yet validated.
    ///
    /// # Errors
    /// [`Error::Version`] for a plan of another version, [`Error::BadPlan`] for bytes that are no plan.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match Self::take(bytes)? {
            (plan, []) => Ok(plan),
            (_, rest) => Err(Error::BadPlan(format!("{} bytes follow it", rest.len()))),
        }
    }

    /// Reads plans that follow each other: those of one model for several targets, the most demanding first.
    ///
    /// # Errors
    /// As [`Plan::decode`].
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, Error> {
        let (first, mut rest) = Self::take(bytes)?;
        let mut all = vec![first];
        while !rest.is_empty() {
            let (plan, more) = Self::take(rest)?;
            all.push(plan);
            rest = more;
        }
        Ok(all)
    }

    /// The first plan, and the bytes that follow it.
    fn take(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let bad = |e: postcard::Error| Error::BadPlan(format!("it cannot be decoded ({e})"));
        let (found, _) = postcard::take_from_bytes::<u32>(bytes).map_err(bad)?;
        if found != ABI_VERSION {
            return Err(Error::Version { what: "interface", found, ours: ABI_VERSION });
        }
        postcard::take_from_bytes(bytes).map_err(bad)
    }

    /// The name of a symbol; empty if there is none at this position.
    pub fn symbol_name(&self, i: u32) -> String {
        self.symbols.get(i as usize).map_or_else(String::new, |s| s.name.clone())
    }

    /// `f32[batch,seq]`.
    pub fn type_text(&self, spec: &TensorSpec) -> String {
        let dims: Vec<String> = spec.dims.iter().map(|e| e.display(&|i| self.symbol_name(i))).collect();
        format!("{}[{}]", spec.dtype.name(), dims.join(","))
    }

    /// Checks every index, range and name, so that running cannot leave a table. `weights_len`: bytes of the weights.
    ///
    /// # Errors
    /// [`Error::Version`], or [`Error::BadPlan`] with the first contradiction.
    pub fn validate(&self, n_kernels: usize, weights_len: usize) -> Result<(), Error> {
        if self.abi_version != ABI_VERSION {
            return Err(Error::Version { what: "interface", found: self.abi_version, ours: ABI_VERSION });
        }
        let bad = |what: String| Err(Error::BadPlan(what));
        for (kind, names) in [
            ("symbols", self.symbols.iter().map(|s| &s.name).collect::<Vec<_>>()),
            ("inputs", self.inputs.iter().map(|s| &s.name).collect()),
            ("outputs", self.outputs.iter().map(|s| &s.name).collect()),
            ("kernels", self.kernels.iter().collect()),
        ] {
            // The C interface hands names out as C strings.
            if names.iter().any(|n| n.contains('\0')) || names.iter().collect::<BTreeSet<_>>().len() != names.len() {
                return bad(format!("the names of the {kind} are not usable or not unique"));
            }
        }
        if let Some(s) = self.symbols.iter().find(|s| s.min < 0 || s.min > s.max) {
            return bad(format!("dim `{}` has the range {}..{}", s.name, s.min, s.max));
        }
        let exprs = self.inputs.iter().chain(&self.outputs).flat_map(|t| &t.dims);
        let exprs = exprs.chain(self.temps.iter().map(|t| &t.size_bytes));
        let exprs = exprs.chain(
            self.launches
                .iter()
                .flat_map(|l| [&l.extent, &l.cost_ns, &l.scratch_bytes, &l.shared_bytes, &l.work.macs, &l.work.bytes]),
        );
        let mut exprs = exprs.chain(self.checks.iter().flat_map(|c| [&c.lhs, &c.rhs]));
        if !exprs.all(|e| e.valid(self.symbols.len())) {
            return bad("an expression is too deep or names an unknown symbol".into());
        }
        if self.kernels.len() != n_kernels {
            return bad(format!("it names {} kernels, the code has {n_kernels}", self.kernels.len()));
        }
        for (i, c) in self.consts.iter().enumerate() {
            let end = c.offset.checked_add(c.len_bytes);
            if c.offset % mem::ALIGN as u64 != 0 || end.is_none_or(|e| e > weights_len as u64) {
                return bad(format!("constant {i} is misaligned or outside the weights"));
            }
        }
        for l in &self.launches {
            let inside = |a: &Arg| match *a {
                Arg::Input(i) => (i as usize) < self.inputs.len(),
                Arg::Output(i) => (i as usize) < self.outputs.len(),
                Arg::Temp(i) => (i as usize) < self.temps.len(),
                Arg::Const(i) => (i as usize) < self.consts.len(),
            };
            if (l.block > 0) != self.device.is_some() || l.block > MAX_BLOCK {
                return bad(format!("the launch of `{}` has {} threads per block", l.node, l.block));
            }
            if l.kernel as usize >= n_kernels || !l.args.iter().all(inside) {
                return bad(format!("the launch of `{}` names something that does not exist", l.node));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let n = Expr::Sym(0);
        let spec = |name: &str| TensorSpec { name: name.into(), dtype: DType::F32, dims: vec![n.clone()] };
        Plan {
            abi_version: ABI_VERSION,
            name: "m".into(),
            producer: "0".into(),
            features: vec![],
            device: None,
            kernels: vec!["k".into()],
            symbols: vec![Symbol { name: "n".into(), min: 1, max: 9 }],
            inputs: vec![spec("x")],
            outputs: vec![spec("y")],
            temps: vec![Temp { size_bytes: n.clone() }],
            consts: vec![ConstSpec { offset: 64, len_bytes: 36 }],
            launches: vec![Launch {
                kernel: 0,
                args: vec![Arg::Input(0), Arg::Const(0), Arg::Temp(0), Arg::Output(0)],
                extent: n.clone(),
                cost_ns: n.clone(),
                scratch_bytes: n.clone(),
                block: 0,
                shared_bytes: Expr::Const(0),
                work: Work { macs: n.clone(), dtype: DType::F32, bytes: n.clone() },
                node: "add".into(),
            }],
            checks: vec![Check { lhs: n.clone(), rhs: n, message: "n".into() }],
            ledger: vec![LedgerEntry { site: "s".into(), codec: "c".into(), parameters: "p".into(), error: Some(0.5) }],
            facts: BTreeMap::from([("a".into(), "b".into())]),
        }
    }

    #[test]
    fn a_plan_comes_back_from_its_bytes() {
        let bytes = plan().encode().expect("encodes");
        assert_eq!(Plan::decode(&bytes).expect("decodes"), plan());
        plan().validate(1, 100).expect("valid");
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let bytes = plan().encode().expect("encodes");
        for cut in 0..bytes.len() {
            assert!(Plan::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Plan::decode(&longer), Err(Error::BadPlan(_))));
        for i in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[i / 8] ^= 1 << (i % 8);
            if let Ok(p) = Plan::decode(&broken) {
                let _ = p.validate(1, 100);
            }
        }
        let mut newer = bytes;
        newer[0] = ABI_VERSION as u8 + 1;
        assert!(matches!(Plan::decode(&newer), Err(Error::Version { .. })));
    }

    #[test]
    fn every_contradiction_is_refused() {
        let breaks: [fn(&mut Plan); 16] = [
            |p| p.abi_version += 1,
            |p| p.symbols[0].min = 10,
            |p| p.symbols[0].min = -1,
            |p| p.symbols.push(p.symbols[0].clone()),
            |p| p.inputs.push(p.inputs[0].clone()),
            |p| p.outputs[0].name = "a\0b".into(),
            |p| p.outputs[0].dims[0] = Expr::Sym(1),
            |p| p.consts[0].offset = 1,
            |p| p.consts[0].len_bytes = 37,
            |p| p.consts[0].offset = u64::MAX - 63,
            |p| p.launches[0].kernel = 1,
            |p| p.launches[0].block = 32,
            |p| p.device = Some(DeviceCode { arch: "sm_80".into() }),
            |p| p.launches[0].args[0] = Arg::Input(1),
            |p| p.launches[0].args[2] = Arg::Temp(1),
            |p| p.checks[0].rhs = (0..100).fold(Expr::Const(1), |e, _| Expr::Add(vec![e])),
        ];
        for (i, f) in breaks.iter().enumerate() {
            let mut p = plan();
            f(&mut p);
            let e = p.validate(1, 100).expect_err("a contradiction");
            assert!(matches!(e, Error::BadPlan(_) | Error::Version { .. }), "{i}: {e}");
        }
    }
}
