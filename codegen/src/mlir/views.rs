//! Constants and the ops that move elements without computing on them.

use std::fmt::Write as _;
use std::ops::Range;

use transc_ir::loops::Ty;
use transc_ir::op::{Concat, Pad, PadMode, Slice, Transpose};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::tensor::{ConstData, ConstId};
use transc_ir::types::{DType, Dim, TensorType};

use super::func::{Emitter, Operand, Tensor, axes, broadcast, tensor_type};
use super::scalar;
use super::text::number;

/// Constants of up to this many elements stand in the text, larger ones in the resources behind it.
const INLINE: usize = 16;

impl Emitter<'_> {
    pub(super) fn constant(&mut self, id: ConstId, ty: &TensorType) -> Tensor {
        let Some(data) = self.module.consts.get(id) else { return self.empty(ty) };
        let elements = Elements(data);
        let range = elements.range();
        let n = data.bytes().len() / ty.dtype.size_bytes();
        let text = if n > 0 && elements.all_equal() {
            Some(number(elements.get(0)))
        } else {
            (n <= INLINE).then(|| elements.nested(&data.dims(), 0).unwrap_or_default())
        };
        if let Some(text) = text {
            let name = self.t.def(&format!("arith.constant dense<{text}> : {}", tensor_type(ty)));
            return Tensor { name, ty: ty.clone(), range };
        }
        let key = resource_name(self.module.consts.name(id), id);
        // Resources of single bits have no layout that all readers agree on.
        let stored = if ty.dtype == DType::Bool { ty.with_dtype(DType::U8) } else { ty.clone() };
        let name = self.t.def(&format!("arith.constant dense_resource<{key}> : {}", tensor_type(&stored)));
        self.used.insert(id, key);
        if ty.dtype != DType::Bool {
            return Tensor { name, ty: ty.clone(), range };
        }
        let name = self.t.def(&format!("arith.trunci {name} : {} to {}", tensor_type(&stored), tensor_type(ty)));
        Tensor { name, ty: ty.clone(), range }
    }

    pub(super) fn reshape(&mut self, x: &Tensor, ty: &TensorType) -> Tensor {
        if x.ty.dims == ty.dims {
            return x.clone();
        }
        if ty.count().is(0) {
            return self.empty(ty);
        }
        let groups = groups(&x.ty.dims, &ty.dims);
        // Many axes become one first, then one becomes many.
        let product = |dims: &[Dim]| dims.iter().product::<Dim>();
        let middle: Vec<Dim> = groups.iter().map(|(from, _)| product(&x.ty.dims[from.clone()])).collect();
        let middle = TensorType::new(ty.dtype, middle);
        let list = |ranges: Vec<&Range<usize>>| {
            let groups: Vec<String> = ranges
                .iter()
                .map(|r| format!("[{}]", (*r).clone().map(|i| i.to_string()).collect::<Vec<_>>().join(", ")))
                .collect();
            format!("[{}]", groups.join(", "))
        };
        let mut name = x.name.clone();
        if x.ty.rank() != middle.rank() {
            let from = list(groups.iter().map(|g| &g.0).collect());
            name = self.t.def(&format!(
                "tensor.collapse_shape {name} {from} : {} into {}",
                tensor_type(&x.ty),
                tensor_type(&middle)
            ));
        }
        if ty.rank() != middle.rank() {
            let to = list(groups.iter().map(|g| &g.1).collect());
            let shape = self.bracketed(&ty.dims);
            name = self.t.def(&format!(
                "tensor.expand_shape {name} {to} output_shape {shape} : {} into {}",
                tensor_type(&middle),
                tensor_type(ty)
            ));
        }
        Tensor { name, ty: ty.clone(), range: x.range }
    }

    pub(super) fn transpose(&mut self, o: &Transpose, x: &Tensor, ty: &TensorType) -> Tensor {
        if o.perm.is_empty() {
            return x.clone();
        }
        let out = self.empty(ty);
        let perm: Vec<String> = o.perm.iter().map(ToString::to_string).collect();
        let name = self.t.def(&format!(
            "linalg.transpose ins({} : {}) outs({} : {}) permutation = [{}]",
            x.name,
            tensor_type(&x.ty),
            out.name,
            tensor_type(ty),
            perm.join(", ")
        ));
        Tensor { name, ..out }
    }

    pub(super) fn slice(&mut self, o: &Slice, x: &Tensor, ty: &TensorType) -> Tensor {
        if ty.count().is(0) {
            return self.empty(ty);
        }
        if o.steps.iter().all(|s| *s > 0) {
            let steps: Vec<Dim> = o.steps.iter().map(|s| Dim::from(*s)).collect();
            return self.extract_slice(x, &o.starts, ty, &steps);
        }
        self.elements(&[], ty, |e, _| {
            let index: Vec<String> = (0..ty.rank())
                .map(|a| {
                    let (i, start, step) = (e.loop_index(a), e.dim(&o.starts[a]), e.dim(&o.steps[a].into()));
                    let by = e.t.def(&format!("arith.muli {i}, {step} : index"));
                    e.t.def(&format!("arith.addi {start}, {by} : index"))
                })
                .collect();
            e.extract(x, &index)
        })
    }

    fn extract_slice(&mut self, x: &Tensor, starts: &[Dim], ty: &TensorType, steps: &[Dim]) -> Tensor {
        if ty.rank() == 0 {
            return x.clone();
        }
        let (starts, sizes, steps) = (self.bracketed(starts), self.bracketed(&ty.dims), self.bracketed(steps));
        let (from, to) = (tensor_type(&x.ty), tensor_type(ty));
        let name = self.t.def(&format!("tensor.extract_slice {}{starts}{sizes}{steps} : {from} to {to}", x.name));
        Tensor { name, ty: ty.clone(), range: x.range }
    }

    pub(super) fn concat(&mut self, o: &Concat, x: &[Tensor], ty: &TensorType) -> Tensor {
        let mut out = self.empty(ty);
        let mut starts = vec![Dim::from(0); ty.rank()];
        for piece in x.iter().filter(|p| !p.ty.count().is(0)) {
            let (at, sizes) = (self.bracketed(&starts), self.bracketed(&piece.ty.dims));
            let steps = self.bracketed(&vec![Dim::from(1); ty.rank()]);
            out.name = self.t.def(&format!(
                "tensor.insert_slice {} into {}{at}{sizes}{steps} : {} into {}",
                piece.name,
                out.name,
                tensor_type(&piece.ty),
                tensor_type(ty)
            ));
            starts[o.axis] = &starts[o.axis] + &piece.ty.dims[o.axis];
        }
        out
    }

    pub(super) fn pad(&mut self, o: &Pad, x: &[Tensor], ty: &TensorType) -> Tensor {
        if o.mode == PadMode::Constant {
            let v = self.extract(&x[1], &[]);
            return self.pad_with(&x[0], &o.lo, &o.hi, &v, ty);
        }
        let x = &x[0];
        self.elements(&[], ty, |e, _| {
            let index: Vec<String> = (0..ty.rank()).map(|a| e.pad_source(o.mode, a, &o.lo[a], &x.ty.dims[a])).collect();
            e.extract(x, &index)
        })
    }

    /// Grows a tensor by a scalar at both ends of its axes.
    pub(super) fn pad_with(&mut self, x: &Tensor, lo: &[Dim], hi: &[Dim], v: &str, ty: &TensorType) -> Tensor {
        if lo.iter().chain(hi).all(|d| d.is(0)) {
            return x.clone();
        }
        let (low, high) = (self.bracketed(lo), self.bracketed(hi));
        let name = self.t.name();
        self.t.open(&format!("{name} = tensor.pad {} low{low} high{high} {{", x.name));
        let args: Vec<String> = (0..ty.rank()).map(|_| format!("{}: index", self.t.name())).collect();
        self.t.line(&format!("^bb0({}):", args.join(", ")));
        self.t.line(&format!("tensor.yield {v} : {}", super::text::scalar_type(ty.dtype)));
        self.t.close(&format!("}} : {} to {}", tensor_type(&x.ty), tensor_type(ty)));
        Tensor::new(name, ty)
    }

    /// The position along an axis that a padded position repeats; see [`PadMode::source`].
    fn pad_source(&mut self, mode: PadMode, axis: usize, lo: &Dim, n: &Dim) -> String {
        let int = Ty::INDEX;
        let one = Dim::from(1);
        let (i, lo, last) = (self.loop_index(axis), self.dim(lo), self.dim(&(n - &one)));
        let i = self.t.def(&format!("arith.subi {i}, {lo} : index"));
        let i = self.t.def(&format!("arith.index_cast {i} : index to i64"));
        let last = self.t.def(&format!("arith.index_cast {last} : index to i64"));
        let zero = self.t.constant(1, Literal::i64(0));
        let at = match mode {
            PadMode::Wrap => {
                let one = self.t.constant(1, Literal::i64(1));
                let n = scalar::bin(&mut self.t, BinOp::Add, int, &last, &one);
                scalar::bin(&mut self.t, BinOp::Mod, int, &i, &n)
            }
            PadMode::Reflect => {
                // Period 2(n-1): up and down again without repeating the ends. One element repeats itself.
                let two = self.t.constant(1, Literal::i64(2));
                let period = scalar::bin(&mut self.t, BinOp::Mul, int, &last, &two);
                let r = scalar::bin(&mut self.t, BinOp::Mod, int, &i, &period);
                let back = scalar::bin(&mut self.t, BinOp::Sub, int, &period, &r);
                scalar::bin(&mut self.t, BinOp::Min, int, &r, &back)
            }
            PadMode::Constant | PadMode::Edge => i,
        };
        let at = scalar::bin(&mut self.t, BinOp::Min, int, &at, &last);
        let at = scalar::bin(&mut self.t, BinOp::Max, int, &at, &zero);
        self.t.index_of(&at, "i64")
    }

    /// Element-wise conversion; none if the type is right.
    pub(super) fn converted(&mut self, x: &Tensor, to: DType) -> Tensor {
        if x.ty.dtype == to {
            return x.clone();
        }
        let (from, ty) = (x.ty.dtype, x.ty.with_dtype(to));
        let ins = [Operand::new(x, axes(ty.rank()))];
        self.elements(&ins, &ty, |e, v| scalar::cast(&mut e.t, Ty::scalar(from), to, &v[0]))
    }

    /// Stretches a tensor.
    pub(super) fn stretched(&mut self, x: &Tensor, ty: &TensorType) -> Tensor {
        if x.ty == *ty {
            return x.clone();
        }
        let ins = [Operand::new(x, broadcast(&x.ty.dims, &ty.dims))];
        self.elements(&ins, ty, |_, v| v[0].clone())
    }
}

/// The finest pairs of neighbouring axes with equal products.
fn groups(from: &[Dim], to: &[Dim]) -> Vec<(Range<usize>, Range<usize>)> {
    if from.is_empty() || to.is_empty() {
        return Vec::new();
    }
    let mut out: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let start = (i, j);
        let (mut a, mut b) = (from[i].clone(), to[j].clone());
        (i, j) = (i + 1, j + 1);
        while a != b {
            let grow_to = a.exact_div(&b).is_some() || i == from.len();
            if grow_to && j < to.len() {
                b = &b * &to[j];
                j += 1;
            } else if !grow_to && i < from.len() {
                a = &a * &from[i];
                i += 1;
            } else {
                return vec![(0..from.len(), 0..to.len())];
            }
        }
        out.push((start.0..i, start.1..j));
    }
    // Axes of extent 1 at the end belong to the last pair.
    if let Some((a, b)) = out.last_mut() {
        (a.end, b.end) = (from.len(), to.len());
    }
    out
}

/// `encoder.weight_12`: the initializer's name as far as MLIR's names allow, unique by the id.
fn resource_name(name: &str, id: ConstId) -> String {
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    format!("c_{}_{}", clean.trim_matches(['_', '.']), id.0)
}

/// The elements of a constant.
struct Elements<'a>(&'a ConstData);

impl Elements<'_> {
    fn size(&self) -> usize {
        self.0.ty().dtype.size_bytes()
    }

    fn get(&self, i: usize) -> Literal {
        let n = self.size();
        let mut bits = [0; 8];
        bits[..n].copy_from_slice(&self.0.bytes()[i * n..(i + 1) * n]);
        Literal { dtype: self.0.ty().dtype, bits: u64::from_le_bytes(bits) }
    }

    fn all_equal(&self) -> bool {
        let mut chunks = self.0.bytes().chunks_exact(self.size());
        let first = chunks.next();
        chunks.all(|c| Some(c) == first)
    }

    /// Smallest and largest element of integers.
    fn range(&self) -> Option<(i64, i64)> {
        let n = self.0.bytes().len() / self.size();
        if !self.0.ty().dtype.is_int() || n == 0 {
            return None;
        }
        let values = (0..n).map(|i| self.get(i).to_i64());
        Some(values.fold((i64::MAX, i64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v))))
    }

    /// The elements in nested brackets.
    fn nested(&self, dims: &[usize], at: usize) -> Result<String, std::fmt::Error> {
        let Some((n, rest)) = dims.split_first() else { return Ok(number(self.get(at))) };
        if dims.contains(&0) {
            return Ok(String::new());
        }
        let stride: usize = rest.iter().product();
        let mut out = String::from("[");
        for i in 0..*n {
            write!(out, "{}{}", if i > 0 { ", " } else { "" }, self.nested(rest, at + i * stride)?)?;
        }
        out.push(']');
        Ok(out)
    }
}
