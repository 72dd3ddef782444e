//! Lowering: every `fused` region becomes a kernel, or two in a row, through a template or the generic nest.

mod anchor;
mod attention;
mod conv;
mod device;
mod element;
mod index;
mod layout;
mod nest;
mod norm;
mod products;
mod region;
mod rows;
mod strided;
mod table;
mod tokens;
mod weights;
mod work;

use std::collections::HashMap;

use transc_ir::loops::Kernel;
use transc_ir::op::Op;
use transc_ir::tensor::{ConstId, Loc};
use transc_ir::types::Dim;
use transc_ir::{Module, Value};

use crate::program::{Arg, Launch, PackedConst, Packing, Program};
use crate::{CodegenError, Target};

use layout::Layouts;
use region::Region;

/// A kernel with the buffers of its launch, before numbering.
pub(crate) struct Lowered {
    kernel: Kernel,
    /// In the order of the kernel's parameters.
    args: Vec<Source>,
    cost_ns: Dim,
}

/// Where a kernel parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Operand of the region.
    Operand(usize),
    /// Result of the region.
    Result(usize),
    /// A constant in a layout.
    Const(ConstId, Packing),
    /// The table of the region.
    Table,
    /// The memory between the kernels of the region.
    Between,
}

/// Lowers a module after the `fuse` pass.
///
/// # Errors
/// An op without a lowering.
pub fn lower(m: &Module, target: &Target) -> Result<Program, CodegenError> {
    let layouts = if target.is_device() { Layouts::default() } else { Layouts::choose(m, target) };
    let f = &m.main;
    let mut p = Program {
        name: m.name.clone(),
        symbols: m.symbols.clone(),
        constraints: m.constraints.clone(),
        inputs: f.params().iter().map(|(n, v)| (n.clone(), f.ty(*v).clone())).collect(),
        outputs: f.results().iter().map(|(n, v)| (n.clone(), f.ty(*v).clone())).collect(),
        temps: Vec::new(),
        consts: Vec::new(),
        kernels: Vec::new(),
        launches: Vec::new(),
        layers: Vec::new(),
    };
    let mut places: Vec<Option<Arg>> = vec![None; f.value_count()];
    for (i, (_, v)) in f.params().iter().enumerate() {
        places[v.index()] = Some(Arg::Input(i));
    }
    let mut outputs: HashMap<Value, usize> = HashMap::new();
    for (i, (_, v)) in f.results().iter().enumerate() {
        outputs.insert(*v, i);
    }
    let mut known: HashMap<Kernel, usize> = HashMap::new();
    let mut packed: HashMap<(ConstId, Packing), usize> = HashMap::new();
    for (_, node) in f.nodes() {
        if let Op::Constant(c) = &node.op {
            // A constant outside every region is read from where it lies.
            places[node.results[0].index()] = Some(Arg::Const(pack(&mut p, &mut packed, m, c.id, Packing::Raw)));
            continue;
        }
        if let Some(same) = node.results.first().and_then(|v| layouts.same_as(*v)) {
            places[node.results[0].index()] = places[same.index()];
            continue;
        }
        let region = Region::placed(f, node, m, &layouts);
        let lowered = nest::lower_region(&region, target)?;
        for v in &node.results {
            let place = match outputs.get(v) {
                Some(i) => Arg::Output(*i),
                None => {
                    p.temps.push(f.ty(*v).clone());
                    Arg::Temp(p.temps.len() - 1)
                }
            };
            places[v.index()] = Some(place);
        }
        let between = region.between.borrow().clone().map(|ty| {
            p.temps.push(ty);
            Arg::Temp(p.temps.len() - 1)
        });
        for (i, lowered) in lowered.into_iter().enumerate() {
            let work = work::of(&region, i == 0, &lowered.args);
            let mut args = Vec::with_capacity(lowered.args.len());
            for a in lowered.args {
                let place = match a {
                    Source::Operand(i) => places[node.operands[i].index()],
                    Source::Result(i) => places[node.results[i].index()],
                    Source::Const(id, packing) => Some(Arg::Const(pack(&mut p, &mut packed, m, id, packing))),
                    Source::Table => region.table.take().map(|source| {
                        p.consts.push(PackedConst { source, packing: Packing::Raw });
                        Arg::Const(p.consts.len() - 1)
                    }),
                    Source::Between => between,
                };
                args.push(place.ok_or_else(|| no_lowering(&node.op, f.ty(node.results[0]), &node.loc))?);
            }
            let kernel = number(&mut p, &mut known, lowered.kernel);
            let (cost_ns, tunable, loc) = (lowered.cost_ns, region.tunable.take(), node.loc.clone());
            p.launches.push(Launch { kernel, args, cost_ns, work, tunable, loc });
        }
        p.layers.extend(region.layer.get().map(|l| (node.loc.clone(), l)));
    }
    Ok(p)
}

/// The number of a kernel. Equal layers share one: the name takes no part in the comparison.
fn number(p: &mut Program, known: &mut HashMap<Kernel, usize>, mut kernel: Kernel) -> usize {
    let schedule = std::mem::take(&mut kernel.name);
    *known.entry(kernel.clone()).or_insert_with(|| {
        kernel.name = format!("k{}_{schedule}", p.kernels.len());
        p.kernels.push(kernel);
        p.kernels.len() - 1
    })
}

/// The place of a constant in a layout; each pair is packed once.
fn pack(p: &mut Program, packed: &mut HashMap<(ConstId, Packing), usize>, m: &Module, id: ConstId, packing: Packing) -> usize {
    *packed.entry((id, packing)).or_insert_with(|| {
        if let Some(source) = m.consts.get(id) {
            p.consts.push(PackedConst { source: source.clone(), packing });
        }
        p.consts.len() - 1
    })
}

pub(crate) fn no_lowering(op: &Op, ty: &transc_ir::TensorType, loc: &Loc) -> CodegenError {
    CodegenError::NoLowering { op: op.mnemonic().into(), ty: ty.to_string(), node: loc.path().into() }
}
