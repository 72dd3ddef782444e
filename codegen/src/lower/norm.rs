//! Norms over the last axis whose operand or result lies turned: vectors run along the tokens, sums along none of their lanes.
//!
//! A unit is some vectors of tokens. It is evaluated once into a panel `[features][tokens]`; where rows are read or left, squares of the panel change
//! places with rows. Statistics take two passes over the panel, which stays in the second-level cache: sums in the epilogue of the product before would
//! spare the first one.

use transc_ir::Value;
use transc_ir::loops::{Access, Buf, KernelBuilder, Reg, Ty, Unroll, Var};
use transc_ir::op::Op;
use transc_ir::scalar::BinOp;
use transc_ir::tensor::Node;
use transc_ir::types::{DType, Dim};

use super::Lowered;
use super::element::{Elements, Lanes, Stuck};
use super::index::Index;
use super::layout::{self, elements_behind};
use super::nest::{cost, results, vector_range};
use super::products;
use super::region::Region;
use super::rows::{divide, inverse_root, scale_and_shift};
use crate::Target;
use crate::template::lies::Lies;
use crate::template::tile::{self, TileShape};
use crate::template::transpose::turn_square;

type Result<T> = std::result::Result<T, Stuck>;

/// Tokens of a unit: whole cache lines, two side by side.
const TOKENS: i64 = 32;
/// Features whose sums are added to the total at once, since long sums in `f32` lose digits.
const BLOCK: i64 = 64;

/// Features that are a multiple of so many elements apart share the sets of a cache: those of a unit do not stay there. In blocks they are near.
const CONFLICTS: i64 = 1024;

/// A norm, and where its values lie.
struct Norm<'a> {
    anchor: Value,
    node: &'a Node,
    lanes: u16,
    /// Axes of tokens.
    tokens: &'a [Dim],
    m: Dim,
    features: Dim,
    /// How the operand lies, and the result.
    from: Lies,
    to: Lies,
    /// The operand is a parameter that lies turned, as the result does, and is read where it lies.
    direct: bool,
    /// `[features up to whole vectors][tokens of a unit]`.
    panel: Buf,
    /// The same by tokens.
    rows: Buf,
    out: Buf,
}

/// Lowers a norm whose operand or result lies turned; `None` for another one.
pub(super) fn lower(r: &Region, anchor: Value, node: &Node, target: &Target) -> Option<Result<Lowered>> {
    let root = r.roots()[0];
    let [from, to] = [taken(r), Some(root)].map(|v| layout::lies(v.and_then(|v| r.order(v))));
    (from.turned() || to.turned()).then(|| lower_with(r, (anchor, node), [from, to], target))
}

/// The parameter that a norm reads element by element, if that is all that it reads; it may lie turned.
pub(super) fn taken(r: &Region) -> Option<Value> {
    let elements = elements_behind(r, None)?;
    let [one] = elements[..] else { return None };
    Some(one)
}

fn lower_with(r: &Region, (anchor, node): (Value, &Node), [from, to]: [Lies; 2], target: &Target) -> Result<Lowered> {
    let ty = r.ty(anchor).clone();
    let Some((features, tokens)) = ty.dims.split_last() else { return Err(Stuck::Op(anchor)) };
    let lanes = target.lanes();
    let vector = Dim::from(i64::from(lanes));
    let m: Dim = tokens.iter().product();
    let name = format!("{}_{}x{lanes}{from}{to}", node.op.mnemonic(), ty.dtype);
    let mut kb = KernelBuilder::new(&name, r.symbols.clone(), m.ceil_div(&TOKENS.into()));
    let mut e = Elements::new(&mut kb, r, lanes);
    let (_, out) = results(&mut kb, &mut e, Access::Write)[0];
    let len = &(&features.ceil_div(&vector) * &vector) * &TOKENS.into();
    let is_param = r.body.params().iter().any(|(_, v)| *v == node.operands[0]);
    let conflicts = from == Lies::Turned && m.as_const().is_none_or(|m| m % CONFLICTS == 0);
    let direct = from.turned() && to.turned() && is_param && !conflicts;
    let panel = kb.local(DType::F32, if direct { 0.into() } else { len.clone() });
    let rows = kb.local(DType::F32, if from.turned() && to.turned() { 0.into() } else { len });
    let norm = Norm { anchor, node, lanes, tokens, m, features: features.clone(), from, to, direct, panel, rows, out };
    let mut done = Ok(());
    let (lo, hi) = (kb.lo(), kb.hi());
    kb.for_(lo, hi, 1, Unroll::No, |kb, unit| {
        let width = kb.index(TOKENS);
        let m0 = kb.mul(unit, width);
        let mark = e.mark();
        done = norm.unit(&mut e, kb, m0);
        e.release(mark);
    });
    done?;
    Ok(Lowered { kernel: kb.finish(), args: e.args, cost_ns: cost(r, &ty, 4) })
}

/// Computes something of some elements: their index, which vector of the unit they are in, their place in its memory.
type Each<'a> = dyn FnMut(&mut Elements<'_>, &mut KernelBuilder, &[Index], (usize, Reg), Lanes) -> Result<()> + 'a;

impl Norm<'_> {
    fn unit(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, m0: Reg) -> Result<()> {
        if !self.direct {
            self.take(e, kb, m0)?;
        }
        let (mean, inverse) = self.statistics(e, kb, m0)?;
        let normal = |kb: &mut KernelBuilder, v: usize, x: Reg| {
            let x = mean.as_ref().map_or(x, |mean| kb.sub(x, mean[v]));
            kb.mul(x, inverse[v])
        };
        if self.to.turned() {
            return self.each_vector(e, kb, m0, &mut |e, kb, idx, (v, at), lanes| {
                let x = self.taken(e, kb, idx, at, lanes)?;
                let y = normal(kb, v, x);
                self.finish(e, kb, y, idx, lanes)
            });
        }
        let (zero, end) = (kb.index(0), kb.dim(&self.features));
        kb.for_(zero, end, 1, Unroll::No, |kb, f| {
            for (v, at) in self.places(kb, f).into_iter().enumerate() {
                let x = kb.load(self.panel, at, self.lanes);
                let y = normal(kb, v, x);
                kb.store(self.panel, at, y);
            }
        });
        self.turn(kb, false);
        self.each_row(e, kb, (m0, false), &mut |e, kb, idx, (_, at), lanes| {
            let y = kb.load(self.rows, at, self.lanes);
            self.finish(e, kb, y, idx, lanes)
        })
    }

    /// Evaluates the operand into the panel.
    fn take(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, m0: Reg) -> Result<()> {
        let x = self.node.operands[0];
        let to = if self.from.turned() { self.panel } else { self.rows };
        let mut one = |e: &mut Elements<'_>, kb: &mut KernelBuilder, idx: &[Index], (_, at): (usize, Reg), lanes: Lanes| {
            let x = e.at(kb, x, idx, lanes)?;
            let mut x = kb.cast(DType::F32, x);
            if let Some(count) = lanes.count {
                // Squares and vectors are whole.
                let none = kb.num(kb.ty(x), 0.0);
                x = tile::keep_lanes(kb, x, count, none);
            }
            kb.store(to, at, x);
            Ok(())
        };
        if self.from.turned() {
            self.each_vector(e, kb, m0, &mut one)?;
            if !self.to.turned() {
                self.fill(kb);
            }
        } else {
            self.each_row(e, kb, (m0, true), &mut one)?;
            self.turn(kb, true);
        }
        Ok(())
    }

    /// A row of the panel.
    fn shape(&self) -> TileShape {
        TileShape { lanes: self.lanes, rows: 1, vectors: TOKENS as u16 / self.lanes }
    }

    /// Features in whole vectors.
    fn padded(&self) -> Dim {
        let lanes = Dim::from(i64::from(self.lanes));
        &self.features.ceil_div(&lanes) * &lanes
    }

    /// Where the vectors of a feature lie in the panel.
    fn places(&self, kb: &mut KernelBuilder, feature: Reg) -> Vec<Reg> {
        let width = kb.index(TOKENS);
        let row = kb.mul(feature, width);
        tile::row_places(kb, self.shape(), row)
    }

    /// Feature by feature, vectors of the tokens of a unit. The tokens count as one axis: what is read there lies turned.
    fn each_vector(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, m0: Reg, body: &mut Each<'_>) -> Result<()> {
        let (zero, end, vectors) = (kb.index(0), kb.dim(&self.features), self.vectors(kb, m0));
        let mut done = Ok(());
        let mark = e.mark();
        kb.for_(zero, end, 1, Unroll::No, |kb, f| {
            for (v, (at, (m, lanes))) in self.places(kb, f).into_iter().zip(&vectors).enumerate() {
                let idx = self.index(kb, *m, f);
                let one = body(e, kb, &idx, (v, at), *lanes);
                done = done.and(one);
            }
        });
        e.release(mark);
        done
    }

    /// The first token and the lanes of each vector of a unit.
    fn vectors(&self, kb: &mut KernelBuilder, m0: Reg) -> Vec<(Reg, Lanes)> {
        let m_end = kb.dim(&self.m);
        let left = kb.sub(m_end, m0);
        let whole = self.m.modulo(&TOKENS.into()).is(0);
        let vector = |v: i64| {
            let at = kb.index(v);
            let (m, left) = (kb.add(m0, at), kb.sub(left, at));
            (m, Lanes { n: self.lanes, count: (!whole).then(|| tile::active(kb, left, self.lanes.into())) })
        };
        self.shape().columns().map(vector).collect()
    }

    /// The index of a vector of tokens.
    fn index(&self, kb: &mut KernelBuilder, m: Reg, f: Reg) -> Vec<Index> {
        let zero = kb.index(0);
        let mut idx = vec![Index::scalar(zero); self.tokens.len()];
        if let Some(last) = idx.last_mut() {
            *last = Index::vector(m);
        }
        idx.push(Index::scalar(f));
        idx
    }

    /// A vector of what is normalised: its index, its place in the panel.
    fn taken(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, idx: &[Index], at: Reg, lanes: Lanes) -> Result<Reg> {
        if !self.direct {
            return Ok(kb.load(self.panel, at, self.lanes));
        }
        let x = e.at(kb, self.node.operands[0], idx, lanes)?;
        Ok(kb.cast(DType::F32, x))
    }

    /// Row by row, vectors of the features of a unit; rows beyond the last token repeat that one, or are left out.
    fn each_row(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, (m0, all): (Reg, bool), body: &mut Each<'_>) -> Result<()> {
        let (zero, one, m_end, width) = (kb.index(0), kb.index(1), kb.dim(&self.m), kb.index(TOKENS));
        let (last, left) = (kb.sub(m_end, one), kb.sub(m_end, m0));
        let end = if all { width } else { kb.bin(BinOp::Min, left, width) };
        let mut done = Ok(());
        let mark = e.mark();
        kb.for_(zero, end, 1, Unroll::No, |kb, r| {
            let m = kb.add(m0, r);
            let m = kb.bin(BinOp::Min, m, last);
            let at: Vec<Index> = tile::unflatten(kb, m, self.tokens).into_iter().map(Index::scalar).collect();
            let (len, features) = (kb.dim(&self.padded()), kb.dim(&self.features));
            let row = kb.mul(r, len);
            done = vector_range(e, kb, (zero, features), &self.features, &mut |e, kb, j, lanes| {
                let mut idx = at.clone();
                idx.push(j);
                let place = kb.add(row, j.reg);
                body(e, kb, &idx, (0, place), lanes)
            });
        });
        e.release(mark);
        done
    }

    /// Zeros behind the features of the panel: squares are whole.
    fn fill(&self, kb: &mut KernelBuilder) {
        let (from, to) = (kb.dim(&self.features), kb.dim(&self.padded()));
        let none = kb.num(Ty::vector(DType::F32, self.lanes), 0.0);
        kb.for_(from, to, 1, Unroll::No, |kb, f| {
            for at in self.places(kb, f) {
                kb.store(self.panel, at, none);
            }
        });
    }

    /// Squares of the rows to the panel, or back.
    fn turn(&self, kb: &mut KernelBuilder, to_panel: bool) {
        let lanes = i64::from(self.lanes);
        let (zero, width, features) = (kb.index(0), kb.index(TOKENS), kb.dim(&self.padded()));
        kb.for_(zero, width, lanes, Unroll::No, |kb, r| {
            kb.for_(zero, features, lanes, Unroll::No, |kb, f| {
                let (row, column) = (kb.mul(r, features), kb.mul(f, width));
                let (row, column) = (kb.add(row, f), kb.add(column, r));
                let (rows, panel) = ((self.rows, row, features), (self.panel, column, width));
                let (from, to) = if to_panel { (rows, panel) } else { (panel, rows) };
                turn_square(kb, self.lanes, from, to);
            });
        });
    }

    /// Mean, where it is taken off, and what the rest is multiplied by, for the vectors of a unit.
    fn statistics(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, m0: Reg) -> Result<(Option<Vec<Reg>>, Vec<Reg>)> {
        let epsilon = match &self.node.op {
            Op::LayerNorm(n) => n.epsilon.0,
            Op::RmsNorm(n) => n.epsilon.0,
            _ => 0.0,
        };
        let mean = match self.node.op {
            Op::LayerNorm(_) => {
                let sums = self.sum(e, kb, m0, &|_, x, _| x)?;
                Some(sums.into_iter().map(|sum| divide(kb, sum, &self.features)).collect::<Vec<Reg>>())
            }
            _ => None,
        };
        let squares = self.sum(e, kb, m0, &|kb, x, v| {
            let x = mean.as_ref().map_or(x, |mean| kb.sub(x, mean[v]));
            kb.mul(x, x)
        })?;
        let inverse = squares.into_iter().map(|sum| inverse_root(kb, sum, &self.features, epsilon)).collect();
        Ok((mean, inverse))
    }

    /// Sums of `f` over the features, for each vector of a unit.
    fn sum(
        &self,
        e: &mut Elements<'_>,
        kb: &mut KernelBuilder,
        m0: Reg,
        f: &dyn Fn(&mut KernelBuilder, Reg, usize) -> Reg,
    ) -> Result<Vec<Reg>> {
        let (none, vectors, mut stuck) = (kb.num(Ty::vector(DType::F32, self.lanes), 0.0), self.vectors(kb, m0), None);
        let totals: Vec<Var> = (0..self.shape().vectors).map(|_| kb.var(none)).collect();
        let (zero, all, block, width) = (kb.index(0), kb.dim(&self.features), kb.index(BLOCK), kb.index(TOKENS));
        kb.for_(zero, all, BLOCK, Unroll::No, |kb, first| {
            let (left, base) = (kb.sub(all, first), kb.mul(first, width));
            let count = kb.bin(BinOp::Min, left, block);
            let mut row = |kb: &mut KernelBuilder, (r, v): (Reg, usize), at: Reg| {
                let ((m, lanes), feature) = (vectors[v], kb.add(first, r));
                let (idx, mark) = (self.index(kb, m, feature), e.mark());
                let x = self.taken(e, kb, &idx, at, lanes);
                e.release(mark);
                let x = x.unwrap_or_else(|s| {
                    stuck = Some(s);
                    none
                });
                f(kb, x, v)
            };
            let sums = tile::fold_rows(kb, self.shape(), (base, count, 0.0), &mut row, &|kb, y, sum| kb.add(sum, y));
            for (sums, total) in sums.into_iter().zip(&totals) {
                let sum = sums.into_iter().fold(kb.get(*total), |a, b| kb.add(a, b));
                kb.set(*total, sum);
            }
        });
        match stuck {
            Some(s) => Err(s),
            None => Ok(totals.into_iter().map(|t| kb.get(t)).collect()),
        }
    }

    /// Scales and shifts a normalised vector, applies what follows and stores it.
    fn finish(&self, e: &mut Elements<'_>, kb: &mut KernelBuilder, y: Reg, idx: &[Index], lanes: Lanes) -> Result<()> {
        let root = e.region.roots()[0];
        let y = scale_and_shift(e, kb, y, self.node, &idx[idx.len() - 1..], lanes)?;
        let y = kb.cast(e.region.ty(self.anchor).dtype, y);
        products::finish(e, kb, (self.anchor, root), self.out, idx, y, lanes.count)
    }
}
