//! Programs as the runtime's plans, and their weights as one block.

use std::collections::HashMap;

use rayon::prelude::*;
use transc_ir::loops::Space;
use transc_ir::types::{Atom, Dim, TensorType};
use transc_runtime::abi::{
    ABI_VERSION, Arg as PlanArg, Check, ConstSpec, DType, DeviceCode, Expr, Launch, Plan, Symbol, Temp, TensorSpec, Work,
};

use crate::program::{Arg, PackedConst, Packing, Program};
use crate::scratch::scratch_len;
use crate::{Backend, Target};

/// The plan of a program whose constants lie at `consts`.
pub(crate) fn plan(p: &Program, target: &Target, backend: Backend, consts: Vec<ConstSpec>) -> Plan {
    let symbols = p.symbols.iter().map(|(s, r)| Symbol { name: s.name().into(), min: r.min, max: r.max }).collect();
    let expr = |d: &Dim| expr(p, d);
    // The two crates number element types alike, as ONNX does.
    let number = |d: transc_ir::types::DType| DType::from_number(d.onnx_number()).unwrap_or(DType::U8);
    let spec = |(name, ty): &(String, TensorType)| TensorSpec {
        name: name.clone(),
        dtype: number(ty.dtype),
        dims: ty.dims.iter().map(expr).collect(),
    };
    let launches = p.launches.iter().map(|l| {
        let k = &p.kernels[l.kernel];
        Launch {
            kernel: l.kernel as u32,
            args: l.args.iter().map(|a| arg(*a)).collect(),
            extent: expr(&k.extent),
            cost_ns: expr(&l.cost_ns),
            scratch_bytes: expr(&scratch_len(k, Space::Thread)),
            block: k.block.unwrap_or(0),
            shared_bytes: expr(&scratch_len(k, Space::Shared)),
            work: Work { macs: expr(&l.work.macs), dtype: number(l.work.dtype), bytes: expr(&l.work.bytes) },
            node: l.loc.path().into(),
        }
    });
    Plan {
        abi_version: ABI_VERSION,
        name: p.name.clone(),
        producer: env!("CARGO_PKG_VERSION").into(),
        features: target.features().into_iter().map(String::from).collect(),
        device: target.is_device().then(|| DeviceCode { arch: target.processor().into() }),
        kernels: p.kernels.iter().map(|k| k.name.clone()).collect(),
        symbols,
        inputs: p.inputs.iter().map(spec).collect(),
        outputs: p.outputs.iter().map(spec).collect(),
        temps: p.temps.iter().map(|t| Temp { size_bytes: expr(&(&t.count() * &Dim::from(t.dtype.size_bytes()))) }).collect(),
        consts,
        launches: launches.collect(),
        checks: p.constraints.iter().map(|(a, b, why)| Check { lhs: expr(a), rhs: expr(b), message: why.clone() }).collect(),
        ledger: Vec::new(),
        facts: [("backend", backend.name().into()), ("target", target.name().into()), ("kernels", p.kernels.len().to_string())]
            .map(|(k, v): (&str, String)| (k.to_string(), v))
            .into(),
    }
}

fn arg(a: Arg) -> PlanArg {
    match a {
        Arg::Input(i) => PlanArg::Input(i as u32),
        Arg::Output(i) => PlanArg::Output(i as u32),
        Arg::Temp(i) => PlanArg::Temp(i as u32),
        Arg::Const(i) => PlanArg::Const(i as u32),
    }
}

fn expr(p: &Program, d: &Dim) -> Expr {
    let two = |a: &Dim, b: &Dim| (Box::new(expr(p, a)), Box::new(expr(p, b)));
    let atom = |a: &Atom| match a {
        // Every symbol of a dim is declared; the verifier saw to it.
        Atom::Sym(s) => Expr::Sym(p.symbols.get_index_of(s).unwrap_or(usize::MAX) as u32),
        Atom::FloorDiv(a, b) => {
            let (a, b) = two(a, b);
            Expr::FloorDiv(a, b)
        }
        Atom::Mod(a, b) => {
            let (a, b) = two(a, b);
            Expr::Mod(a, b)
        }
        Atom::Min(a, b) => {
            let (a, b) = two(a, b);
            Expr::Min(a, b)
        }
        Atom::Max(a, b) => {
            let (a, b) = two(a, b);
            Expr::Max(a, b)
        }
    };
    if let Some(c) = d.as_const() {
        return Expr::Const(c);
    }
    let mut terms: Vec<Expr> = d
        .terms()
        .iter()
        .map(|(m, c)| {
            let mut factors: Vec<Expr> = m.iter().map(atom).collect();
            if *c != 1 || factors.is_empty() {
                factors.insert(0, Expr::Const(*c));
            }
            if factors.len() == 1 { factors.remove(0) } else { Expr::Mul(factors) }
        })
        .collect();
    if terms.len() == 1 { terms.remove(0) } else { Expr::Add(terms) }
}

/// The constants of one program or of several in one block, each once.
#[derive(Default)]
pub(crate) struct Block {
    consts: Vec<PackedConst>,
    specs: Vec<ConstSpec>,
    len: usize,
    /// By where the source lies, and how it is packed.
    known: HashMap<(usize, usize, Packing), ConstSpec>,
}

impl Block {
    /// Places the constants of a program.
    pub(crate) fn add(&mut self, p: &Program) -> Vec<ConstSpec> {
        let place = |c: &PackedConst| {
            let bytes = c.source.bytes();
            *self.known.entry((bytes.as_ptr().addr(), bytes.len(), c.packing)).or_insert_with(|| {
                let spec = ConstSpec { offset: self.len as u64, len_bytes: c.len_bytes() as u64 };
                self.len = (self.len + c.len_bytes()).next_multiple_of(64);
                self.consts.push(c.clone());
                self.specs.push(spec);
                spec
            })
        };
        p.consts.iter().map(place).collect()
    }

    /// Length of the block in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Packs all constants into a zeroed block.
    pub(crate) fn write(&self, out: &mut [u8]) {
        let mut rest = out;
        let mut pieces = Vec::with_capacity(self.specs.len());
        for s in &self.specs {
            let (piece, tail) = rest.split_at_mut((s.len_bytes as usize).next_multiple_of(64));
            pieces.push(&mut piece[..s.len_bytes as usize]);
            rest = tail;
        }
        self.consts.par_iter().zip(pieces).for_each(|(c, piece)| c.write(piece));
    }
}
