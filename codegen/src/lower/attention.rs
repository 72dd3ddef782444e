//! Attention through its templates, where operands are strided views: of any type of floats up to `f32`, or of 8-bit codes.

use std::cell::{Cell, RefCell};

use transc_ir::Value;
use transc_ir::loops::{Access, KernelBuilder, Reg};
use transc_ir::op::Op;
use transc_ir::scalar::Literal;
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::element::{Elements, Lanes, Stuck};
use super::index::Index;
use super::layout::{self, Order};
use super::nest::results;
use super::products::{MACS_PER_NS, finish};
use super::region::Region;
use super::strided::{Strided, in_blocks, strided, whole};
use super::{Lowered, Source};
use crate::Target;
use crate::template::attention::merge::{self, Records};
use crate::template::attention::turned::Masking;
use crate::template::attention::{self, AttentionProblem, few, floats, int8, turned};

/// What the kernels of an attention are built from; `None` where the templates do not fit.
fn cx<'r>(r: &'r Region, target: &Target) -> Option<Cx<'r>> {
    let anchor = r.anchor?;
    let node = r.body.def_node(anchor)?;
    let [q, k, v] = [0, 1, 2].map(|i| in_blocks(r, r.body.unrounded(node.operands[i])));
    let root = r.roots()[0];
    if r.ty(root).dims != r.ty(anchor).dims {
        return None;
    }
    let mask = node.operands.get(3).copied();
    Some(Cx { r, anchor, root, views: [q?, k?, v?], mask, lanes: target.lanes(), stuck: Cell::new(None) })
}

/// The kernels of an attention by its templates; `None` where it does not fit.
pub(super) fn lower(r: &Region, node: &Node, target: &Target) -> Option<Vec<Lowered>> {
    let operands = [0, 1, 2].map(|i| r.body.unrounded(node.operands[i]));
    let dtypes = operands.map(|x| r.ty(x).dtype);
    let dims = operands.map(|x| r.ty(x).dims.as_slice());
    let cx = cx(r, target)?;
    match &node.op {
        Op::Attention(a) => {
            if !dtypes.iter().all(|d| matches!(d, DType::F16 | DType::Bf16 | DType::F32)) {
                return None;
            }
            let p = AttentionProblem::new(a, dims);
            if cx.lies_turned() {
                let s = turned::floats::Schedule::choose(target.lanes());
                return cx.turned(&s.to_string(), &p, &mut |kb, x, mask, epilogue| {
                    turned::floats::build(kb, &p, s, x, mask, epilogue);
                });
            }
            let narrow = r.ty(node.operands[0]).dtype == DType::Bf16;
            let engine = floats::Engine::of_bf16(narrow && target.multiplies_bf16(), narrow && target.has_matrices());
            let s = floats::Schedule::choose(target.lanes(), engine, &p);
            match few::parts(&p, target.lanes()).filter(|_| cx.fits_few()) {
                Some(records) => cx.in_parts(&p, s, records),
                None => cx.whole(&s.to_string(), &p, s.rows(), &mut |kb, x, mask, epilogue| {
                    floats::build(kb, &p, (s, None), x, mask, epilogue);
                }),
            }
        }
        Op::IntAttention(a) => {
            let sizes = AttentionProblem::of_codes(a, dims);
            let s = int8::Schedule::choose(target.lanes(), target.has_byte_dot(), &sizes);
            let p = int8::Problem { sizes, op: a, dtypes };
            if cx.lies_turned() {
                let s = turned::int8::Schedule::choose(target.lanes(), target.has_byte_dot());
                return cx.turned(&s.to_string(), &p.sizes, &mut |kb, x, mask, epilogue| {
                    turned::int8::build(kb, &p, s, x, mask, epilogue);
                });
            }
            cx.whole(&s.to_string(), &p.sizes, attention::ROWS, &mut |kb, x, mask, epilogue| {
                int8::build(kb, &p, s, x, mask, epilogue);
            })
        }
        _ => None,
    }
}

/// The parameters that have to lie turned where the result does; `None` if there is no kernel for that.
pub(super) fn taken_turned(r: &Region, target: &Target) -> Option<Vec<Value>> {
    let operands = r.body.def_node(r.anchor?)?.operands[..3].iter();
    let taken: Vec<Value> = operands.map(|v| Some(strided(r, r.body.unrounded(*v))?.base)).collect::<Option<_>>()?;
    let mut turned = r.clone();
    let params = r.body.params().iter().enumerate().filter(|(_, (_, v))| taken.contains(v));
    turned.orders[0] = params.map(|(i, (_, v))| (i, layout::turned(r.ty(*v).rank(), None))).collect();
    turned.orders[1].insert(0, Order { axes: vec![1, 3, 0, 2], blocks: None });
    let offered = match r.anchor_op()? {
        Op::Attention(a) => a.causal.is_none() && taken.iter().all(|v| r.ty(*v).dtype == DType::F32),
        Op::IntAttention(a) => a.causal.is_none(),
        _ => false,
    };
    (offered && cx(&turned, target)?.lies_turned()).then_some(taken)
}

/// True if the region is an attention whose operands and result lie turned.
pub(super) fn lies_turned(r: &Region, target: &Target) -> bool {
    cx(r, target).is_some_and(|cx| cx.lies_turned())
}

/// The template's part: from operands, mask and epilogue.
type Build<'a> =
    dyn FnMut(&mut KernelBuilder, [&attention::Operand; 3], Option<&mut attention::Mask<'_>>, &mut attention::Epilogue<'_>) + 'a;

/// The same of the template whose vectors run along the queries.
type BuildTurned<'a> =
    dyn FnMut(&mut KernelBuilder, [&attention::Operand; 3], Option<Masking<'_, '_>>, &mut turned::Epilogue<'_>) + 'a;

/// What the kernels of an attention have in common.
struct Cx<'r> {
    r: &'r Region,
    anchor: Value,
    root: Value,
    /// Queries, keys, values.
    views: [Strided; 3],
    mask: Option<Value>,
    lanes: u16,
    /// Set where an element could not be had.
    stuck: Cell<Option<Stuck>>,
}

impl Cx<'_> {
    /// One kernel, with units of so many query rows.
    fn whole(&self, name: &str, p: &AttentionProblem, rows: i64, build: &mut Build<'_>) -> Option<Vec<Lowered>> {
        let name = format!("{name}{}", p.flags(self.mask.is_some()));
        let kernel = self.kernel(&name, p.extent(rows), macs(p), &mut |kb, e| self.attend(kb, e, build));
        Some(vec![kernel?])
    }

    /// True if queries, keys, values and result have their tokens beside each other.
    fn lies_turned(&self) -> bool {
        self.views.iter().chain([&whole(self.r, self.root)]).all(|v| v.beside(2) && !v.beside(3))
    }

    /// One kernel whose vectors run along the queries.
    fn turned(&self, name: &str, p: &AttentionProblem, build: &mut BuildTurned<'_>) -> Option<Vec<Lowered>> {
        let name = format!("{name}{}", p.flags(self.mask.is_some()));
        let kernel = self.kernel(&name, p.extent(turned::QUERIES), macs(p), &mut |kb, e| {
            let operands = self.operands(kb, &mut e.borrow_mut())?;
            let mut store = self.store(kb, e);
            let mut epilogue = |kb: &mut KernelBuilder, at: &[Reg; 3], query: Reg, x: Reg, count: Option<Reg>| {
                let [b, h, feature] = at.map(Index::scalar);
                store(kb, &[b, h, Index::vector(query), feature], x, count);
            };
            let (mut by_keys, mut by_queries) = (self.mask(e), self.query_mask(e));
            let by_keys = by_keys.as_mut().map(|m| Masking::Keys(m));
            let mask = by_queries.as_mut().map(|m| Masking::Queries(m)).or(by_keys);
            build(kb, operands.each_ref(), mask, &mut epilogue);
            Some(())
        });
        Some(vec![kernel?])
    }

    /// Gives a template operands, mask and epilogue.
    fn attend(&self, kb: &mut KernelBuilder, e: &RefCell<Elements<'_>>, build: &mut Build<'_>) -> Option<()> {
        let operands = self.operands(kb, &mut e.borrow_mut())?;
        let mut epilogue = self.epilogue(kb, e);
        let mut mask = self.mask(e);
        build(kb, operands.each_ref(), mask.as_mut().map(|m| m as _), &mut epilogue);
        Some(())
    }

    /// True if few queries can be computed without packing.
    fn fits_few(&self) -> bool {
        let [_, k, v] = &self.views;
        few::fits([&k.strides, &v.strides])
    }

    /// A kernel that leaves records of parts of the keys where queries are few, and one that joins them.
    fn in_parts(&self, p: &AttentionProblem, s: floats::Schedule, records: Records) -> Option<Vec<Lowered>> {
        self.r.between.replace(Some(records.ty(p)));
        let between = |kb: &mut KernelBuilder, e: &RefCell<Elements<'_>>, access: Access| {
            e.borrow_mut().args.push(Source::Between);
            kb.param("parts", DType::F32, access)
        };
        let name = format!("{s}{}_parts{}", p.flags(self.mask.is_some()), records.keys);
        let part = self.kernel(&name, records.extent(p, s.rows()), macs(p), &mut |kb, e| {
            let out = between(kb, e, Access::Write);
            self.attend(kb, e, &mut |kb, x, mask, epilogue| floats::build(kb, p, (s, Some((records, out))), x, mask, epilogue))
        });
        let sums = &(&records.rows(p) * &records.parts(p)) * &p.e;
        let merge = self.kernel("attention_merge", records.rows(p), sums, &mut |kb, e| {
            let from = between(kb, e, Access::Read);
            let mut epilogue = self.epilogue(kb, e);
            merge::build(kb, p, records, from, &mut epilogue);
            Some(())
        });
        Some(vec![part?, merge?])
    }

    /// A kernel of so many multiply-adds.
    fn kernel(
        &self,
        name: &str,
        extent: Dim,
        macs: Dim,
        body: &mut dyn FnMut(&mut KernelBuilder, &RefCell<Elements<'_>>) -> Option<()>,
    ) -> Option<Lowered> {
        let mut kb = KernelBuilder::new(name, self.r.symbols.clone(), extent);
        let e = RefCell::new(Elements::new(&mut kb, self.r, self.lanes));
        body(&mut kb, &e)?;
        if self.stuck.take().is_some() {
            return None;
        }
        let args = e.into_inner().args;
        Some(Lowered { kernel: kb.finish(), args, cost_ns: macs.floor_div(&(MACS_PER_NS / 2).into()) })
    }

    fn operands(&self, kb: &mut KernelBuilder, e: &mut Elements<'_>) -> Option<[attention::Operand; 3]> {
        let mut operand = |view: &Strided| {
            let strides: [Dim; 4] = view.strides.clone().try_into().ok()?;
            let block = view.blocks.map(|b| b.len);
            Some(attention::Operand { buf: e.buffer(kb, view.base)?, offset: view.offset.clone(), strides, block })
        };
        let [q, k, v] = &self.views;
        Some([operand(q)?, operand(k)?, operand(v)?])
    }

    /// Mask values of `[batch, head, query]` from a key on.
    fn mask<'a>(
        &'a self,
        e: &'a RefCell<Elements<'_>>,
    ) -> Option<impl FnMut(&mut KernelBuilder, &[Reg; 3], Reg, u16, Option<Reg>) -> Reg + 'a> {
        let m = self.mask?;
        Some(move |kb: &mut KernelBuilder, at: &[Reg; 3], key: Reg, lanes: u16, count: Option<Reg>| {
            let [b, h, query] = at.map(Index::scalar);
            self.mask_at(kb, e, m, &[b, h, query, Index::vector(key)], Lanes { n: lanes, count })
        })
    }

    /// Mask values of `[batch, head, key]` from a query on, where these lie beside each other or are the same for all queries.
    fn query_mask<'a>(
        &'a self,
        e: &'a RefCell<Elements<'_>>,
    ) -> Option<impl FnMut(&mut KernelBuilder, &[Reg; 3], Reg, u16, Option<Reg>) -> Reg + 'a> {
        let m = self.mask?;
        let queries = self.r.ty(m).rank().checked_sub(2)?;
        let beside = self.r.body.def_node(m).is_none() && whole(self.r, m).beside(queries);
        if !beside && !self.r.ty(m).dims[queries].is(1) {
            return None;
        }
        Some(move |kb: &mut KernelBuilder, at: &[Reg; 3], query: Reg, lanes: u16, count: Option<Reg>| {
            let [b, h, key] = at.map(Index::scalar);
            self.mask_at(kb, e, m, &[b, h, Index::vector(query), key], Lanes { n: lanes, count })
        })
    }

    /// Mask values at an index of the logits.
    fn mask_at(&self, kb: &mut KernelBuilder, e: &RefCell<Elements<'_>>, m: Value, full: &[Index; 4], lanes: Lanes) -> Reg {
        let ty = self.r.ty(m);
        let idx: Vec<Index> = ty
            .dims
            .iter()
            .zip(&full[4 - ty.rank()..])
            .map(|(d, i)| if d.is(1) { Index::scalar(kb.index(0)) } else { *i })
            .collect();
        let mut e = e.borrow_mut();
        let mark = e.mark();
        let x = e.at(kb, m, &idx, lanes);
        e.release(mark);
        match x {
            Ok(x) if ty.dtype == DType::Bool => {
                let (on, off) = (kb.lit(Literal::f32(0.0)), kb.lit(Literal::f32(f32::NEG_INFINITY)));
                let (on, off) = (kb.splat(lanes.n, on), kb.splat(lanes.n, off));
                kb.select(x, on, off)
            }
            Ok(x) => kb.cast(DType::F32, x),
            Err(s) => {
                self.stuck.set(Some(s));
                let zero = kb.lit(Literal::f32(0.0));
                kb.splat(lanes.n, zero)
            }
        }
    }

    /// Stores results, with what follows the attention: vectors of features.
    fn epilogue<'a>(
        &'a self,
        kb: &mut KernelBuilder,
        e: &'a RefCell<Elements<'_>>,
    ) -> impl FnMut(&mut KernelBuilder, &[Reg; 3], Reg, Reg, Option<Reg>) + 'a {
        let mut store = self.store(kb, e);
        move |kb, at, n, x, count| {
            let [b, h, query] = at.map(Index::scalar);
            store(kb, &[b, h, query, Index::vector(n)], x, count);
        }
    }

    /// The same for any vectors.
    fn store<'a>(
        &'a self,
        kb: &mut KernelBuilder,
        e: &'a RefCell<Elements<'_>>,
    ) -> impl FnMut(&mut KernelBuilder, &[Index; 4], Reg, Option<Reg>) + 'a {
        let (_, out) = results(kb, &mut e.borrow_mut(), Access::Write)[0];
        move |kb, idx, x, count| {
            let x = kb.cast(self.r.ty(self.anchor).dtype, x);
            if let Err(s) = finish(&mut e.borrow_mut(), kb, (self.anchor, self.root), out, idx, x, count) {
                self.stuck.set(Some(s));
            }
        }
    }
}

/// Multiply-adds of an attention.
fn macs(p: &AttentionProblem) -> Dim {
    &(&(&p.b * &p.h) * &(&p.sq * &p.sk)) * &(&p.d + &p.e)
}
