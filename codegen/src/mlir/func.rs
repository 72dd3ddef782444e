//! Functions of the tensor IR: parameters, dims, nodes, and the one way in which loops over elements are written.

use std::collections::BTreeMap;

use transc_ir::loops::Ty;
use transc_ir::op::Op;
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref};
use transc_ir::tensor::{Builder, Func, Node, Value};
use transc_ir::types::{Atom, DType, Dim, Symbol, TensorType};
use transc_ir::{Module, tensor::ConstId};

use super::scalar;
use super::text::{Text, quoted, scalar_type};

/// A tensor in the text.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) ty: TensorType,
    /// Smallest and largest element, known for integer constants.
    pub(super) range: Option<(i64, i64)>,
}

impl Tensor {
    pub(super) fn new(name: String, ty: &TensorType) -> Self {
        Self { name, ty: ty.clone(), range: None }
    }
}

/// An operand of a loop nest: a tensor and, per axis, the affine expression of the loop variables that indexes it.
pub(super) struct Operand {
    tensor: Tensor,
    map: Vec<String>,
}

impl Operand {
    pub(super) fn new(tensor: &Tensor, map: Vec<String>) -> Self {
        Self { tensor: tensor.clone(), map }
    }
}

/// `dim_i` of a loop nest.
pub(super) fn axis(i: usize) -> String {
    format!("d{i}")
}

/// All loop variables in order.
pub(super) fn axes(n: usize) -> Vec<String> {
    (0..n).map(axis).collect()
}

/// The index of an operand that broadcasts to `to`.
pub(super) fn broadcast(dims: &[Dim], to: &[Dim]) -> Vec<String> {
    let lead = to.len() - dims.len();
    dims.iter().enumerate().map(|(i, d)| if d.is(1) && !to[lead + i].is(1) { "0".into() } else { axis(lead + i) }).collect()
}

/// A loop that folds, not one that fills an axis of the result.
const REDUCTION: bool = true;

/// `parallel` loops, then `reductions`.
pub(super) fn iterators(parallel: usize, reductions: usize) -> Vec<bool> {
    (0..parallel + reductions).map(|i| if i < parallel { !REDUCTION } else { REDUCTION }).collect()
}

/// Writes one function.
pub(super) struct Emitter<'a> {
    pub(super) module: &'a Module,
    pub(super) t: Text,
    /// Code of dims and index constants, at the start of the function.
    entry: String,
    dims: BTreeMap<Dim, String>,
    symbols: BTreeMap<Symbol, String>,
    /// The constants that the function uses.
    pub(super) used: BTreeMap<ConstId, String>,
    /// What has no form in MLIR: node and reason.
    pub(super) problems: Vec<(String, String)>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(module: &'a Module) -> Self {
        Self {
            module,
            t: Text::new(2),
            entry: String::new(),
            dims: BTreeMap::new(),
            symbols: BTreeMap::new(),
            used: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// The text of the module's entry function.
    pub(super) fn main(&mut self) -> String {
        let f = &self.module.main;
        let params: Vec<Tensor> = f.params().iter().map(|(_, v)| Tensor::new(self.t.name(), f.ty(*v))).collect();
        self.bind(&params);
        self.check_dims(&params);
        let results = self.func(f, &params);
        let args: Vec<String> = params
            .iter()
            .zip(f.params())
            .map(|(p, (name, _))| format!("{}: {} loc({})", p.name, tensor_type(&p.ty), quoted(name)))
            .collect();
        let types: Vec<String> = results.iter().map(|r| tensor_type(&r.ty)).collect();
        let names: Vec<&str> = results.iter().map(|r| r.name.as_str()).collect();
        if results.is_empty() {
            self.t.line("return");
        } else {
            self.t.line(&format!("return {} : {}", names.join(", "), types.join(", ")));
        }
        format!("  func.func @main({}) -> ({}) {{\n{}{}  }}\n", args.join(", "), types.join(", "), self.entry, self.t.out)
    }

    /// The nodes of a function, nested ones in place.
    pub(super) fn func(&mut self, f: &Func, params: &[Tensor]) -> Vec<Tensor> {
        let mut values: Vec<Option<Tensor>> = vec![None; f.value_count()];
        for ((_, v), p) in f.params().iter().zip(params) {
            values[v.index()] = Some(p.clone());
        }
        for (_, node) in f.nodes() {
            let operands: Vec<Tensor> = node.operands.iter().filter_map(|v| values[v.index()].clone()).collect();
            let types: Vec<TensorType> = node.results.iter().map(|v| f.ty(*v).clone()).collect();
            let results = self.node(node, &operands, &types);
            for (v, r) in node.results.iter().zip(results) {
                values[v.index()] = Some(r);
            }
        }
        f.results().iter().filter_map(|(_, v)| values[v.index()].clone()).collect()
    }

    fn node(&mut self, node: &Node, x: &[Tensor], types: &[TensorType]) -> Vec<Tensor> {
        let one = |r: Tensor| vec![r];
        match &node.op {
            Op::Constant(o) => one(self.constant(o.id, &types[0])),
            Op::Dims(o) => one(self.dims_tensor(&o.values)),
            Op::Iota(o) => one(self.iota(o, &types[0])),
            Op::Map(o) => one(self.map(&o.body, x, &types[0])),
            Op::Broadcast(_) => one(self.stretched(&x[0], &types[0])),
            Op::Reshape(_) => one(self.reshape(&x[0], &types[0])),
            Op::Transpose(o) => one(self.transpose(o, &x[0], &types[0])),
            Op::Slice(o) => one(self.slice(o, &x[0], &types[0])),
            Op::Concat(o) => one(self.concat(o, x, &types[0])),
            Op::Pad(o) => one(self.pad(o, x, &types[0])),
            Op::Gather(o) => one(self.gather(o, x, &types[0])),
            Op::GatherElements(o) => one(self.gather_elements(o, x, &types[0])),
            Op::GatherNd(o) => one(self.gather_nd(o, x, &types[0])),
            Op::ScatterElements(o) => one(self.scatter_elements(o, x)),
            Op::ScatterNd(o) => one(self.scatter_nd(o, x)),
            Op::Reduce(o) => one(self.reduce(o, &x[0], &types[0])),
            Op::ArgReduce(o) => one(self.arg_reduce(o, &x[0], &types[0])),
            Op::Scan(o) => one(self.scan(o, &x[0])),
            Op::TopK(o) => self.top_k(o, &x[0], types),
            Op::Contract(o) => one(self.contract(o, x, &types[0])),
            Op::Window(o) => one(self.window(o, &x[0], &types[0])),
            Op::Conv(o) => one(self.conv(o, x, &types[0])),
            Op::Fused(o) => self.func(&o.body, x),
            named => self.decomposed(named, node, x, types),
        }
    }

    /// A named op by its meaning in structured ops.
    fn decomposed(&mut self, op: &Op, node: &Node, x: &[Tensor], types: &[TensorType]) -> Vec<Tensor> {
        let mut f = Func::new(op.mnemonic());
        let params: Vec<Value> = x.iter().map(|t| f.add_param("", t.ty.clone())).collect();
        let mut consts = std::sync::Arc::default();
        let results = op.decompose(&mut Builder::new(&mut f, &mut consts), &params);
        // A decomposition computes its constants in bodies; it has no pool to put others in.
        if let Some(Ok(results)) = results
            && consts.is_empty()
        {
            for v in results {
                f.add_result("", v);
            }
            return self.func(&f, x);
        }
        self.problems.push((node.loc.path().into(), format!("`{}` has no form in MLIR", op.mnemonic())));
        types.iter().map(|ty| self.empty(ty)).collect()
    }

    // Dims

    /// Finds the value of every symbol from the parameters: each is affine in some parameter's dim once the others are known.
    fn bind(&mut self, params: &[Tensor]) {
        loop {
            let before = self.symbols.len();
            for p in params {
                for (i, d) in p.ty.dims.iter().enumerate() {
                    let mut unknown = Vec::new();
                    d.symbols(&mut unknown);
                    unknown.retain(|s| !self.symbols.contains_key(s));
                    let [symbol] = unknown.as_slice() else { continue };
                    let zero = d.subst(&|s| (s == symbol).then(|| 0.into()));
                    let slope = (d - &zero).exact_div(&symbol.clone().into());
                    let Some(slope) = slope.filter(|s| s.as_const().is_some_and(|s| s > 0)) else { continue };
                    let extent = self.param_dim(p, i);
                    let value = if d.as_symbol().is_some() {
                        extent
                    } else {
                        let (zero, slope) = (self.dim(&zero), self.dim(&slope));
                        self.at_entry(|t| {
                            let rest = t.def(&format!("arith.subi {extent}, {zero} : index"));
                            t.def(&format!("arith.divsi {rest}, {slope} : index"))
                        })
                    };
                    self.symbols.insert(symbol.clone(), value.clone());
                    self.dims.insert(symbol.clone().into(), value);
                }
            }
            if self.symbols.len() == before {
                return;
            }
        }
    }

    fn param_dim(&mut self, p: &Tensor, axis: usize) -> String {
        let i = self.dim(&Dim::from(axis));
        self.at_entry(|t| t.def(&format!("tensor.dim {}, {i} : {}", p.name, tensor_type(&p.ty))))
    }

    /// Asserts what the model relies on: dims that occur more than once agree, ranges, constraints.
    fn check_dims(&mut self, params: &[Tensor]) {
        for (p, (name, _)) in params.iter().zip(self.module.main.params()) {
            for (i, d) in p.ty.dims.iter().enumerate() {
                if d.as_const().is_none() {
                    let (extent, want) = (self.param_dim(p, i), self.dim(d));
                    if extent != want {
                        self.assert("eq", &extent, &want, &format!("axis {i} of input {name} is not {d}"));
                    }
                }
            }
        }
        for (s, range) in &self.module.symbols {
            if let Some(v) = self.symbols.get(s).cloned() {
                let (min, max) = (self.dim(&range.min.into()), self.dim(&range.max.into()));
                self.assert("sge", &v, &min, &format!("dim {s} is below {}", range.min));
                self.assert("sle", &v, &max, &format!("dim {s} is above {}", range.max));
            }
        }
        for (a, b, why) in &self.module.constraints {
            let (x, y) = (self.dim(a), self.dim(b));
            self.assert("eq", &x, &y, why);
        }
    }

    /// Asserts a relation of two dims.
    pub(super) fn assert_dims(&mut self, predicate: &str, a: &Dim, b: &Dim, message: &str) {
        let (a, b) = (self.dim(a), self.dim(b));
        self.assert(predicate, &a, &b, message);
    }

    fn assert(&mut self, predicate: &str, a: &str, b: &str, message: &str) {
        self.at_entry(|t| {
            let ok = t.def(&format!("arith.cmpi {predicate}, {a}, {b} : index"));
            t.line(&format!("cf.assert {ok}, {}", quoted(message)));
            ok
        });
    }

    /// Writes at the start of the function instead of here.
    fn at_entry(&mut self, f: impl FnOnce(&mut Text) -> String) -> String {
        let mut text = Text::new(2);
        std::mem::swap(&mut text.out, &mut self.entry);
        // The entry shares the names of the rest.
        text.take_names(&self.t);
        let v = f(&mut text);
        self.t.take_names(&text);
        self.entry = text.out;
        v
    }

    /// The value of a dim, an `index`.
    pub(super) fn dim(&mut self, d: &Dim) -> String {
        if let Some(v) = self.dims.get(d) {
            return v.clone();
        }
        let v = match d.as_const() {
            Some(c) => self.at_entry(|t| t.def(&format!("arith.constant {c} : index"))),
            None => {
                let mut sum: Option<String> = None;
                for (monomial, c) in d.terms() {
                    let mut product = (c != 1 || monomial.is_empty()).then(|| self.dim(&c.into()));
                    for a in &monomial {
                        let v = self.atom(a);
                        product = Some(match product {
                            Some(p) => self.at_entry(|t| t.def(&format!("arith.muli {p}, {v} : index"))),
                            None => v,
                        });
                    }
                    let product = product.unwrap_or_default();
                    sum = Some(match sum {
                        Some(s) => self.at_entry(|t| t.def(&format!("arith.addi {s}, {product} : index"))),
                        None => product,
                    });
                }
                sum.unwrap_or_default()
            }
        };
        self.dims.insert(d.clone(), v.clone());
        v
    }

    fn atom(&mut self, a: &Atom) -> String {
        let (name, x, y) = match a {
            Atom::Sym(s) => {
                if let Some(v) = self.symbols.get(s) {
                    return v.clone();
                }
                self.problems.push((String::new(), format!("dim `{s}` follows from no input; fix it with --dim {s}=N")));
                return self.dim(&1.into());
            }
            Atom::FloorDiv(x, y) => ("floordivsi", x, y),
            Atom::Mod(x, y) => ("remsi", x, y),
            Atom::Min(x, y) => ("minsi", x, y),
            Atom::Max(x, y) => ("maxsi", x, y),
        };
        let (p, mut q) = (self.dim(x), self.dim(y));
        if matches!(a, Atom::FloorDiv(..) | Atom::Mod(..)) && y.as_const().is_none_or(|c| c <= 0) {
            let one = self.dim(&1.into());
            q = self.at_entry(|t| t.def(&format!("arith.maxsi {q}, {one} : index")));
        }
        self.at_entry(|t| match name {
            "remsi" => {
                let quotient = t.def(&format!("arith.floordivsi {p}, {q} : index"));
                let whole = t.def(&format!("arith.muli {quotient}, {q} : index"));
                t.def(&format!("arith.subi {p}, {whole} : index"))
            }
            name => t.def(&format!("arith.{name} {p}, {q} : index")),
        })
    }

    /// The dims of a type that are not constant, as operands of `tensor.empty` and its like.
    pub(super) fn dynamic(&mut self, dims: &[Dim]) -> String {
        let names: Vec<String> = dims.iter().filter(|d| d.as_const().is_none()).map(|d| self.dim(d)).collect();
        names.join(", ")
    }

    /// Dims in brackets: numbers, and names where they are not constant.
    pub(super) fn bracketed(&mut self, dims: &[Dim]) -> String {
        let all: Vec<String> = dims.iter().map(|d| d.as_const().map_or_else(|| self.dim(d), |c| c.to_string())).collect();
        format!("[{}]", all.join(", "))
    }

    // Tensors

    /// A tensor without contents.
    pub(super) fn empty(&mut self, ty: &TensorType) -> Tensor {
        let dims = self.dynamic(&ty.dims);
        let name = self.t.def(&format!("tensor.empty({dims}) : {}", tensor_type(ty)));
        Tensor::new(name, ty)
    }

    /// A tensor of equal elements.
    pub(super) fn filled(&mut self, ty: &TensorType, v: Literal) -> Tensor {
        let v = self.t.constant(1, v);
        self.filled_with(ty, &v)
    }

    /// A tensor of equal elements, from a scalar.
    pub(super) fn filled_with(&mut self, ty: &TensorType, v: &str) -> Tensor {
        let (e, tt) = (self.empty(ty), tensor_type(ty));
        let name = self.t.def(&format!("linalg.fill ins({v} : {}) outs({} : {tt}) -> {tt}", scalar_type(ty.dtype), e.name));
        Tensor::new(name, ty)
    }

    /// `linalg.generic` with one or more results. `body` gets the elements of `ins` and of `outs` and gives the new ones.
    pub(super) fn generic(
        &mut self,
        iterators: &[bool],
        ins: &[Operand],
        outs: &[Operand],
        body: impl FnOnce(&mut Self, &[String], &[String]) -> Vec<String>,
    ) -> Vec<Tensor> {
        let loops = axes(iterators.len()).join(", ");
        let maps: Vec<String> =
            ins.iter().chain(outs).map(|o| format!("affine_map<({loops}) -> ({})>", o.map.join(", "))).collect();
        let kinds: Vec<&str> = iterators.iter().map(|r| if *r == REDUCTION { "\"reduction\"" } else { "\"parallel\"" }).collect();
        let group = |word: &str, o: &[Operand]| {
            if o.is_empty() {
                return String::new();
            }
            let names: Vec<&str> = o.iter().map(|o| o.tensor.name.as_str()).collect();
            let types: Vec<String> = o.iter().map(|o| tensor_type(&o.tensor.ty)).collect();
            format!(" {word}({} : {})", names.join(", "), types.join(", "))
        };
        let name = self.t.name();
        let several = if outs.len() > 1 { format!(":{}", outs.len()) } else { String::new() };
        self.t.open(&format!(
            "{name}{several} = linalg.generic {{indexing_maps = [{}], iterator_types = [{}]}}{}{} {{",
            maps.join(", "),
            kinds.join(", "),
            group("ins", ins),
            group("outs", outs)
        ));
        let args: Vec<(String, &'static str)> =
            ins.iter().chain(outs).map(|o| (self.t.name(), scalar_type(o.tensor.ty.dtype))).collect();
        let list: Vec<String> = args.iter().map(|(n, t)| format!("{n}: {t}")).collect();
        self.t.line(&format!("^bb0({}):", list.join(", ")));
        let names: Vec<String> = args.into_iter().map(|(n, _)| n).collect();
        let results = body(self, &names[..ins.len()], &names[ins.len()..]);
        let types: Vec<&str> = outs.iter().map(|o| scalar_type(o.tensor.ty.dtype)).collect();
        self.t.line(&format!("linalg.yield {} : {}", results.join(", "), types.join(", ")));
        let types: Vec<String> = outs.iter().map(|o| tensor_type(&o.tensor.ty)).collect();
        self.t.close(&if outs.len() > 1 { format!("}} -> ({})", types.join(", ")) } else { format!("}} -> {}", types[0]) });
        outs.iter()
            .enumerate()
            .map(|(i, o)| Tensor::new(if outs.len() > 1 { format!("{name}#{i}") } else { name.clone() }, &o.tensor.ty))
            .collect()
    }

    /// A loop nest over the elements of the result.
    pub(super) fn elements(
        &mut self,
        ins: &[Operand],
        ty: &TensorType,
        body: impl FnOnce(&mut Self, &[String]) -> String,
    ) -> Tensor {
        let out = self.empty(ty);
        let n = ty.rank();
        let outs = [Operand::new(&out, axes(n))];
        self.generic(&iterators(n, 0), ins, &outs, |e, x, _| vec![body(e, x)]).remove(0)
    }

    /// The loop variable, an `index`.
    pub(super) fn loop_index(&mut self, i: usize) -> String {
        self.t.def(&format!("linalg.index {i} : index"))
    }

    /// One element of a tensor.
    pub(super) fn extract(&mut self, x: &Tensor, index: &[String]) -> String {
        self.t.def(&format!("tensor.extract {}[{}] : {}", x.name, index.join(", "), tensor_type(&x.ty)))
    }

    /// A scalar body. `divisors` collects, per integer division, whether its divisor is zero.
    pub(super) fn body(&mut self, body: &Body, args: &[(String, DType)], divisors: &mut Vec<String>) -> (String, DType) {
        let mut values: Vec<(String, DType)> = Vec::with_capacity(body.insts.len());
        for inst in &body.insts {
            let at = |r: &Ref| match r {
                Ref::Arg(i) => args[*i as usize].clone(),
                Ref::Inst(i) => values[*i as usize].clone(),
            };
            let v = match inst {
                Inst::Const(l) => (self.t.constant(1, *l), l.dtype),
                Inst::Dim(d) => {
                    let v = self.dim(d);
                    (self.t.def(&format!("arith.index_cast {v} : index to i64")), DType::I64)
                }
                Inst::Un(op, a) => {
                    let (a, d) = at(a);
                    let is_bool = matches!(op, transc_ir::scalar::UnOp::IsNan | transc_ir::scalar::UnOp::IsInf);
                    (scalar::un(&mut self.t, *op, Ty::scalar(d), &a), if is_bool { DType::Bool } else { d })
                }
                Inst::Bin(op, a, b) => {
                    let ((a, d), (b, _)) = (at(a), at(b));
                    if may_divide_by_zero(body, inst, d) {
                        let zero = self.t.constant(1, Literal::from_i64(d, 0));
                        divisors.push(scalar::bin(&mut self.t, BinOp::Eq, Ty::scalar(d), &b, &zero));
                    }
                    (scalar::bin(&mut self.t, *op, Ty::scalar(d), &a, &b), if op.is_compare() { DType::Bool } else { d })
                }
                Inst::Select(c, a, b) => {
                    let ((c, _), (a, d), (b, _)) = (at(c), at(a), at(b));
                    (scalar::select(&mut self.t, 1, Ty::scalar(d), &c, &a, &b), d)
                }
                Inst::Cast(to, a) => {
                    let (a, d) = at(a);
                    (scalar::cast(&mut self.t, Ty::scalar(d), *to, &a), *to)
                }
            };
            values.push(v);
        }
        match body.result {
            Ref::Arg(i) => args[i as usize].clone(),
            Ref::Inst(i) => values[i as usize].clone(),
        }
    }

    fn map(&mut self, body: &Body, x: &[Tensor], ty: &TensorType) -> Tensor {
        if let ([Inst::Const(l)], Ref::Inst(0), 0) = (body.insts.as_slice(), body.result, ty.rank()) {
            let name = self.t.def(&format!("arith.constant dense<{}> : {}", super::text::number(*l), tensor_type(ty)));
            return Tensor::new(name, ty);
        }
        let operand = |x: &Tensor| Operand::new(x, broadcast(&x.ty.dims, &ty.dims));
        let typed = |x: &[Tensor], names: &[String]| -> Vec<(String, DType)> {
            names.iter().cloned().zip(x.iter().map(|x| x.ty.dtype)).collect()
        };
        if divides(body, x) {
            // Division by zero ends the run, as everywhere; the check is a fold of its own, since bodies cannot stop.
            let ok = self.filled(&TensorType::scalar(DType::Bool), Literal::bool(true));
            let ins: Vec<Operand> = x.iter().map(operand).collect();
            let outs = [Operand::new(&ok, Vec::new())];
            let ok = self.generic(&iterators(0, ty.rank()), &ins, &outs, |e, names, acc| {
                let mut zero = Vec::new();
                e.body(body, &typed(x, names), &mut zero);
                let mut good = acc[0].clone();
                for z in zero {
                    let no = scalar::un(&mut e.t, transc_ir::scalar::UnOp::Not, Ty::BOOL, &z);
                    good = scalar::bin(&mut e.t, BinOp::And, Ty::BOOL, &good, &no);
                }
                vec![good]
            });
            self.assert_tensor(&ok[0], "integer division by zero");
        }
        let ins: Vec<Operand> = x.iter().map(operand).collect();
        self.elements(&ins, ty, |e, names| e.body(body, &typed(x, names), &mut Vec::new()).0)
    }

    /// Ends the run unless a rank-0 `i1` holds.
    pub(super) fn assert_tensor(&mut self, ok: &Tensor, message: &str) {
        let v = self.extract(ok, &[]);
        self.t.line(&format!("cf.assert {v}, {}", quoted(message)));
    }

    fn iota(&mut self, o: &transc_ir::op::Iota, ty: &TensorType) -> Tensor {
        self.elements(&[], ty, |e, _| {
            let i = e.loop_index(o.axis);
            e.t.def(&format!("arith.index_cast {i} : index to i64"))
        })
    }

    fn dims_tensor(&mut self, values: &[Dim]) -> Tensor {
        let ty = TensorType::new(DType::I64, vec![Dim::from(values.len())]);
        let items: Vec<String> = values
            .iter()
            .map(|d| {
                let v = self.dim(d);
                self.t.def(&format!("arith.index_cast {v} : index to i64"))
            })
            .collect();
        let name = self.t.def(&format!("tensor.from_elements {} : {}", items.join(", "), tensor_type(&ty)));
        Tensor::new(name, &ty)
    }
}

/// True if an integer division of the body may meet a zero.
fn divides(body: &Body, x: &[Tensor]) -> bool {
    let types: Vec<DType> = x.iter().map(|t| t.ty.dtype).collect();
    let inner = body.infer(&types).unwrap_or_default();
    body.insts.iter().any(|i| match i {
        Inst::Bin(_, Ref::Arg(a), _) => may_divide_by_zero(body, i, types[*a as usize]),
        Inst::Bin(_, Ref::Inst(a), _) => may_divide_by_zero(body, i, inner[*a as usize]),
        _ => false,
    })
}

/// True for an integer division whose divisor is not a constant other than zero.
fn may_divide_by_zero(body: &Body, inst: &Inst, d: DType) -> bool {
    let Inst::Bin(BinOp::Div | BinOp::Rem | BinOp::Mod, _, b) = inst else { return false };
    let constant = match b {
        Ref::Inst(i) => matches!(&body.insts[*i as usize], Inst::Const(l) if l.bits != 0),
        Ref::Arg(_) => false,
    };
    !d.is_float() && !constant
}

/// `tensor<?x4xf32>`.
pub(super) fn tensor_type(ty: &TensorType) -> String {
    let dims: String = ty.dims.iter().map(|d| d.as_const().map_or_else(|| "?x".into(), |c| format!("{c}x"))).collect();
    format!("tensor<{dims}{}>", scalar_type(ty.dtype))
}
