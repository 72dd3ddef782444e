//! Kernels of the loop IR as functions on `memref`s.
//!
//! Mutable registers become values: loops and branches carry those that they assign. MLIR's structured control flow has no early exit, so
//! a status takes its place: what stands behind a statement that may fail runs only while the status is 0.

use std::collections::{BTreeMap, BTreeSet};

use transc_ir::loops::{Block, Buf, Inst, Kernel, ReduceOp, Reg, Stmt, Ty, Unroll, Var};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{Atom, DType, Dim};

use super::scalar;
use super::text::{Text, quoted, scalar_type, vector_of};
#[cfg(feature = "mlir-out")]
use crate::scratch::local_offsets;

/// The status of the kernel, carried like a mutable register.
const STATUS: Var = Var(u32::MAX);

/// The text of a kernel: `(buffers.., scratch blocks.., symbols, lo, hi) -> status`. `attributes` stand behind the signature.
pub(super) fn kernel(k: &Kernel, name: &str, attributes: &str) -> String {
    let mut e = Emitter::new(k);
    let fails = fails(&k.body);
    let ok = e.t.constant(1, Literal::from_i64(DType::I32, 0));
    if fails {
        e.vars.insert(STATUS, ok.clone());
    }
    e.block(&k.body);
    let status = e.vars.get(&STATUS).cloned().unwrap_or(ok);
    e.t.line(&format!("return {status} : i32"));
    let mut params: Vec<String> = memrefs(k).map(|(name, d)| format!("{name}: {}", memref_type(d))).collect();
    params.extend(["%lo: i64", "%hi: i64"].map(String::from));
    let signature = format!("func.func @{}({}) -> i32 {attributes}", quoted(name), params.join(", "));
    format!("  {signature}{{\n{}{}  }}\n", e.entry, e.t.out)
}

/// The memory that a kernel sees: buffers, scratch blocks, the values of the symbols.
fn memrefs(k: &Kernel) -> impl Iterator<Item = (String, DType)> {
    let bufs = k.bufs.iter().enumerate().map(|(i, b)| (format!("%b{i}"), b.dtype));
    let locals = k.locals.iter().enumerate().map(|(i, l)| (format!("%l{i}"), l.dtype));
    bufs.chain(locals).chain([("%syms".into(), DType::I64)])
}

#[cfg(feature = "mlir-out")]
/// A memref of one dynamic axis in the LLVM dialect: base, aligned base, offset, extent, stride.
const DESCRIPTOR: &str = "!llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>";

#[cfg(feature = "mlir-out")]
/// The function with the runtime's signature that calls the kernel `inner`: pointers become memrefs.
pub(super) fn entry(k: &Kernel, inner: &str, attributes: &str) -> String {
    let mut e = Emitter::new(k);
    let zero = e.t.def("llvm.mlir.constant(0 : i64) : i64");
    let memref = |t: &mut Text, pointer: &str, d: DType| {
        let mut v = t.def(&format!("llvm.mlir.poison : {DESCRIPTOR}"));
        for (part, at) in [(pointer, "0"), (pointer, "1"), (&zero, "2"), (&zero, "3, 0"), (&zero, "4, 0")] {
            v = t.def(&format!("llvm.insertvalue {part}, {v}[{at}] : {DESCRIPTOR}"));
        }
        t.def(&format!("builtin.unrealized_conversion_cast {v} : {DESCRIPTOR} to {}", memref_type(d)))
    };
    let syms = memref(&mut e.t, "%symbols", DType::I64);
    e.syms = syms.clone();
    let mut args = Vec::new();
    for (i, b) in k.bufs.iter().enumerate() {
        let p = e.t.def(&format!("llvm.getelementptr %bufs[{i}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr"));
        let p = e.t.def(&format!("llvm.load {p} : !llvm.ptr -> !llvm.ptr"));
        args.push(memref(&mut e.t, &p, b.dtype));
    }
    for (l, offset) in k.locals.iter().zip(local_offsets(k)) {
        let offset = e.poly(&offset);
        let p = e.t.def(&format!("llvm.getelementptr %scratch[{offset}] : (!llvm.ptr, i64) -> !llvm.ptr, i8"));
        args.push(memref(&mut e.t, &p, l.dtype));
    }
    args.push(syms);
    args.extend(["%lo", "%hi"].map(String::from));
    let types: Vec<String> = memrefs(k).map(|(_, d)| memref_type(d)).chain(["i64", "i64"].map(String::from)).collect();
    let status = e.t.def(&format!("func.call @{}({}) : ({}) -> i32", quoted(inner), args.join(", "), types.join(", ")));
    e.t.line(&format!("return {status} : i32"));
    let params = "%bufs: !llvm.ptr, %symbols: !llvm.ptr, %scratch: !llvm.ptr, %lo: i64, %hi: i64";
    format!("  func.func @{}({params}) -> i32 {attributes}{{\n{}  }}\n", quoted(&k.name), e.t.out)
}

/// What stands in memory: a byte for a truth value, and the bits of a bf16, for which LLVM has no loads and stores under a mask.
fn stored(d: DType) -> DType {
    match d {
        DType::Bool => DType::U8,
        DType::Bf16 => DType::U16,
        d => d,
    }
}

fn memref_type(d: DType) -> String {
    format!("memref<?x{}>", scalar_type(stored(d)))
}

/// True if a statement of the block may end the kernel.
fn fails(block: &Block) -> bool {
    block.iter().any(may_fail)
}

fn may_fail(s: &Stmt) -> bool {
    match s {
        Stmt::Fail(_) => true,
        Stmt::For { body, .. } => fails(body),
        Stmt::If { then, els, .. } => fails(then) || fails(els),
        _ => false,
    }
}

/// The mutable registers that a block assigns, its inner blocks included.
fn assigned(block: &[Stmt], out: &mut BTreeSet<Var>) {
    for s in block {
        match s {
            Stmt::Set(v, _) => {
                out.insert(*v);
            }
            Stmt::For { body, .. } => assigned(body, out),
            Stmt::If { then, els, .. } => {
                assigned(then, out);
                assigned(els, out);
            }
            Stmt::Fail(_) => {
                out.insert(STATUS);
            }
            _ => {}
        }
    }
}

struct Emitter<'a> {
    k: &'a Kernel,
    t: Text,
    /// Code of dims, at the start of the function.
    entry: String,
    dims: BTreeMap<Dim, String>,
    regs: BTreeMap<Reg, String>,
    vars: BTreeMap<Var, String>,
    /// The values of the symbols.
    syms: String,
}

impl<'a> Emitter<'a> {
    fn new(k: &'a Kernel) -> Self {
        let maps = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { k, t: Text::of_kernel(2), entry: String::new(), dims: maps.0, regs: maps.1, vars: maps.2, syms: "%syms".into() }
    }

    fn reg(&self, r: Reg) -> String {
        self.regs.get(&r).cloned().unwrap_or_default()
    }

    fn var_type(&self, v: Var) -> String {
        if v == STATUS { "i32".into() } else { self.t.reg_type(self.k.var_ty(v)) }
    }

    fn block(&mut self, block: &[Stmt]) {
        for (i, s) in block.iter().enumerate() {
            self.stmt(s);
            let rest = &block[i + 1..];
            if may_fail(s) && !rest.is_empty() {
                self.if_ok(rest);
                return;
            }
        }
    }

    /// Statements that run only while nothing has failed.
    fn if_ok(&mut self, block: &[Stmt]) {
        let status = self.vars.get(&STATUS).cloned().unwrap_or_default();
        let zero = self.t.constant(1, Literal::from_i64(DType::I32, 0));
        let ok = self.t.def(&format!("arith.cmpi eq, {status}, {zero} : i32"));
        self.branch(&ok, block, &[]);
    }

    /// The mutable registers that blocks assign and that have a value already: what control flow must carry.
    fn carried(&self, blocks: &[&[Stmt]]) -> Vec<Var> {
        let mut all = BTreeSet::new();
        blocks.iter().for_each(|b| assigned(b, &mut all));
        all.into_iter().filter(|v| self.vars.contains_key(v)).collect()
    }

    fn values(&self, vars: &[Var]) -> String {
        vars.iter().map(|v| self.vars[v].as_str()).collect::<Vec<_>>().join(", ")
    }

    fn types(&self, vars: &[Var]) -> String {
        vars.iter().map(|v| self.var_type(*v)).collect::<Vec<_>>().join(", ")
    }

    /// `%5:2 = `, or nothing; and the names of the parts.
    fn results(&mut self, n: usize) -> (String, Vec<String>) {
        match n {
            0 => (String::new(), Vec::new()),
            1 => {
                let name = self.t.name();
                (format!("{name} = "), vec![name])
            }
            _ => {
                let name = self.t.name();
                (format!("{name}:{n} = "), (0..n).map(|i| format!("{name}#{i}")).collect())
            }
        }
    }

    fn yield_(&mut self, vars: &[Var]) {
        if !vars.is_empty() {
            let line = format!("scf.yield {} : {}", self.values(vars), self.types(vars));
            self.t.line(&line);
        }
    }

    fn branch(&mut self, cond: &str, then: &[Stmt], els: &[Stmt]) {
        let vars = self.carried(&[then, els]);
        let before = self.vars.clone();
        let (head, names) = self.results(vars.len());
        let types = if vars.is_empty() { String::new() } else { format!("-> ({}) ", self.types(&vars)) };
        self.t.open(&format!("{head}scf.if {cond} {types}{{"));
        self.block(then);
        self.yield_(&vars);
        self.vars = before.clone();
        if !vars.is_empty() || !els.is_empty() {
            self.t.reopen("} else {");
            self.block(els);
            self.yield_(&vars);
            self.vars = before;
        }
        self.t.close("}");
        self.vars.extend(vars.into_iter().zip(names));
    }

    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(r, inst) => {
                let v = self.inst(*r, inst);
                self.regs.insert(*r, v);
            }
            Stmt::Set(v, r) => {
                let value = self.reg(*r);
                self.vars.insert(*v, value);
            }
            Stmt::Store { buf, index, value, count } => self.store(*buf, *index, *value, *count),
            Stmt::For { iv, lo, hi, step, unroll, body } => {
                let vars = self.carried(&[body]);
                let before = self.vars.clone();
                let step = self.t.constant(1, Literal::i64(*step));
                let (head, names) = self.results(vars.len());
                let i = self.t.name();
                let args: Vec<String> = vars.iter().map(|_| self.t.name()).collect();
                let carry = if vars.is_empty() {
                    String::new()
                } else {
                    let init: Vec<String> = args.iter().zip(&vars).map(|(a, v)| format!("{a} = {}", self.vars[v])).collect();
                    format!(" iter_args({}) -> ({})", init.join(", "), self.types(&vars))
                };
                let (lo, hi) = (self.reg(*lo), self.reg(*hi));
                self.t.open(&format!("{head}scf.for {i} = {lo} to {hi} step {step}{carry} : i64 {{"));
                self.regs.insert(*iv, i);
                self.vars.extend(vars.iter().copied().zip(args));
                if fails(body) {
                    self.if_ok(body)
                } else {
                    self.block(body)
                }
                self.yield_(&vars);
                let hint = match unroll {
                    Unroll::Auto => "",
                    Unroll::No | Unroll::Few | Unroll::Interleave(_) => {
                        " {loop_annotation = #llvm.loop_annotation<unroll = <disable = true>>}"
                    }
                    Unroll::Full => " {loop_annotation = #llvm.loop_annotation<unroll = <full = true>>}",
                };
                self.t.close(&format!("}}{hint}"));
                self.vars = before;
                self.vars.extend(vars.into_iter().zip(names));
            }
            Stmt::If { cond, then, els } => {
                let cond = self.reg(*cond);
                self.branch(&cond, then, els);
            }
            Stmt::Fail(status) => {
                let v = self.t.constant(1, Literal::from_i64(DType::I32, *status as i64));
                self.vars.insert(STATUS, v);
            }
            // Host code is one thread, and [`crate::Backend::target`] has no matrix registers.
            Stmt::Barrier | Stmt::Matrix(_) => {}
            Stmt::Prefetch { buf, index } => {
                let place = self.place(*buf, *index);
                self.t.line(&format!("memref.prefetch {place}, read, locality<2>, data : {}", self.memref(*buf)));
            }
        }
    }

    fn memref(&self, buf: Buf) -> String {
        memref_type(self.k.buf_dtype(buf))
    }

    /// `%b0[%i]`.
    fn place(&mut self, buf: Buf, index: Reg) -> String {
        let index = self.reg(index);
        let index = self.t.index_of(&index, "i64");
        match buf {
            Buf::Param(i) => format!("%b{i}[{index}]"),
            Buf::Local(i) => format!("%l{i}[{index}]"),
        }
    }

    /// The mask of the first `count` lanes.
    fn mask(&mut self, lanes: u16, count: &str) -> String {
        let count = self.t.index_of(count, "i64");
        self.t.def(&format!("vector.create_mask {count} : {}", vector_of("i1", lanes)))
    }

    fn is_on(&mut self, count: Reg) -> String {
        let (count, zero) = (self.reg(count), self.t.constant(1, Literal::i64(0)));
        self.t.def(&format!("arith.cmpi sgt, {count}, {zero} : i64"))
    }

    fn load(&mut self, buf: Buf, index: Reg, ty: Ty, count: Option<Reg>) -> String {
        let stored = stored(ty.dtype);
        let (memref, mem) = (self.memref(buf), vector_of(scalar_type(stored), ty.lanes));
        let raw = match count {
            None => {
                let place = self.place(buf, index);
                let name = if ty.lanes == 1 { "memref.load" } else { "vector.load" };
                let to = if ty.lanes == 1 { String::new() } else { format!(", {mem}") };
                self.t.def(&format!("{name} {place} : {memref}{to}"))
            }
            Some(c) if ty.lanes > 1 => {
                let count = self.reg(c);
                let (mask, off) = (self.mask(ty.lanes, &count), self.t.constant(ty.lanes, Literal::from_i64(stored, 0)));
                let (place, bits) = (self.place(buf, index), vector_of("i1", ty.lanes));
                self.t.def(&format!("vector.maskedload {place}, {mask}, {off} : {memref}, {bits}, {mem} into {mem}"))
            }
            Some(c) => {
                // One lane that may be off: nothing is read then.
                let (on, name) = (self.is_on(c), self.t.name());
                self.t.open(&format!("{name} = scf.if {on} -> ({mem}) {{"));
                let place = self.place(buf, index);
                let v = self.t.def(&format!("memref.load {place} : {memref}"));
                self.t.line(&format!("scf.yield {v} : {mem}"));
                self.t.reopen("} else {");
                let v = self.t.constant(1, Literal::from_i64(stored, 0));
                self.t.line(&format!("scf.yield {v} : {mem}"));
                self.t.close("}");
                name
            }
        };
        if ty.dtype == DType::Bool { scalar::cast(&mut self.t, ty.with_dtype(stored), DType::Bool, &raw) } else { raw }
    }

    fn store(&mut self, buf: Buf, index: Reg, value: Reg, count: Option<Reg>) {
        let ty = self.k.reg_ty(value);
        let (memref, mem) = (self.memref(buf), vector_of(scalar_type(stored(ty.dtype)), ty.lanes));
        let v = self.reg(value);
        let v = if ty.dtype == DType::Bool { scalar::cast(&mut self.t, ty, DType::U8, &v) } else { v };
        match count {
            Some(c) if ty.lanes > 1 => {
                let count = self.reg(c);
                // See the LLVM emitter: a number of lanes that is known goes wrong for narrow elements.
                let narrow = ty.dtype.size_bytes() < 4;
                let count =
                    if narrow { self.t.def(&format!("llvm.inline_asm \"\", \"=r,0\" {count} : (i64) -> i64")) } else { count };
                let (mask, place, bits) = (self.mask(ty.lanes, &count), self.place(buf, index), vector_of("i1", ty.lanes));
                self.t.line(&format!("vector.maskedstore {place}, {mask}, {v} : {memref}, {bits}, {mem}"));
            }
            Some(c) => {
                let on = self.is_on(c);
                self.t.open(&format!("scf.if {on} {{"));
                let place = self.place(buf, index);
                self.t.line(&format!("memref.store {v}, {place} : {memref}"));
                self.t.close("}");
            }
            None if ty.lanes > 1 => {
                let place = self.place(buf, index);
                self.t.line(&format!("vector.store {v}, {place} : {memref}, {mem}"));
            }
            None => {
                let place = self.place(buf, index);
                self.t.line(&format!("memref.store {v}, {place} : {memref}"));
            }
        }
    }

    fn inst(&mut self, dst: Reg, inst: &Inst) -> String {
        let ty = self.k.reg_ty(dst);
        let at = |r: &Reg| self.k.reg_ty(*r);
        match inst {
            Inst::Const(l) => self.t.constant(1, *l),
            Inst::Dim(d) => self.dim(d),
            Inst::Lo => "%lo".into(),
            Inst::Hi => "%hi".into(),
            // A call on the host is one thread.
            Inst::Thread => self.t.constant(1, Literal::i64(0)),
            Inst::Get(v) => self.vars.get(v).cloned().unwrap_or_default(),
            Inst::Load { buf, index, ty, count } => self.load(*buf, *index, *ty, *count),
            Inst::Un(op, a) => scalar::un(&mut self.t, *op, self.k.reg_ty(*a), &self.regs[a]),
            Inst::Bin(op, a, b) => scalar::bin(&mut self.t, *op, self.k.reg_ty(*a), &self.regs[a], &self.regs[b]),
            Inst::Fma(a, b, c) => scalar::fma(&mut self.t, ty, [&self.regs[a], &self.regs[b], &self.regs[c]]),
            Inst::Select(c, a, b) => {
                scalar::select(&mut self.t, self.k.reg_ty(*c).lanes, ty, &self.regs[c], &self.regs[a], &self.regs[b])
            }
            Inst::Cast(d, a) => scalar::cast(&mut self.t, self.k.reg_ty(*a), *d, &self.regs[a]),
            Inst::Bitcast(_, a) => {
                let (from, to) = (self.t.reg_type(at(a)), self.t.reg_type(ty));
                if from == to { self.reg(*a) } else { self.t.def(&format!("arith.bitcast {} : {from} to {to}", self.regs[a])) }
            }
            Inst::Splat(n, a) => {
                let (from, to) = (self.t.reg_type(Ty::scalar(ty.dtype)), self.t.reg_type(Ty::vector(ty.dtype, *n)));
                self.t.def(&format!("vector.broadcast {} : {from} to {to}", self.regs[a]))
            }
            Inst::Lanes(t) if t.lanes == 1 => self.t.constant(1, Literal::from_i64(t.dtype, 0)),
            Inst::Lanes(t) => {
                let lanes: Vec<String> = (0..t.lanes).map(|i| i.to_string()).collect();
                self.t.def(&format!("arith.constant dense<[{}]> : {}", lanes.join(", "), self.t.reg_type(*t)))
            }
            Inst::Extract(a, i) => {
                let (from, to) = (self.t.reg_type(at(a)), self.t.reg_type(Ty::scalar(ty.dtype)));
                self.t.def(&format!("vector.extract {}[{i}] : {to} from {from}", self.regs[a]))
            }
            Inst::Insert(a, i, x) => {
                let (t, s) = (self.t.reg_type(ty), self.t.reg_type(Ty::scalar(ty.dtype)));
                self.t.def(&format!("vector.insert {}, {} [{i}] : {s} into {t}", self.regs[x], self.regs[a]))
            }
            Inst::Shuffle(a, b, lanes) => {
                let (ta, tb) = (self.t.reg_type(at(a)), self.t.reg_type(at(b)));
                let lanes: Vec<String> = lanes.iter().map(ToString::to_string).collect();
                let (a, b) = (&self.regs[a], &self.regs[b]);
                self.t.def(&format!("vector.shuffle {a}, {b} [{}] : {ta}, {tb}", lanes.join(", ")))
            }
            Inst::Reduce(op, a) => self.reduce(*op, at(a), self.reg(*a)),
            Inst::Target(t, args) => {
                let types: Vec<Ty> = args.iter().map(at).collect();
                let names: Vec<String> = args.iter().map(|r| self.reg(*r)).collect();
                scalar::target(&mut self.t, *t, &types, &names)
            }
        }
    }

    /// Lane `i` with lane `i + n/2`, halving: the order of the loop IR, which `vector.reduction` does not promise.
    fn reduce(&mut self, op: ReduceOp, ty: Ty, mut v: String) -> String {
        let op = match op {
            ReduceOp::Add => BinOp::Add,
            ReduceOp::Mul => BinOp::Mul,
            ReduceOp::Min => BinOp::Min,
            ReduceOp::Max => BinOp::Max,
        };
        let s = self.t.reg_type(Ty::scalar(ty.dtype));
        let mut n = ty.lanes;
        while n > 2 {
            let (half, t) = (n / 2, format!("vector<{n}x{s}>"));
            let pick = |from: u16| (from..from + half).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
            let lo = self.t.def(&format!("vector.shuffle {v}, {v} [{}] : {t}, {t}", pick(0)));
            let hi = self.t.def(&format!("vector.shuffle {v}, {v} [{}] : {t}, {t}", pick(half)));
            v = scalar::bin(&mut self.t, op, Ty::vector(ty.dtype, half), &lo, &hi);
            n = half;
        }
        if n == 1 {
            return v;
        }
        let [lo, hi] = [0, 1].map(|i| self.t.def(&format!("vector.extract {v}[{i}] : {s} from vector<2x{s}>")));
        scalar::bin(&mut self.t, op, Ty::scalar(ty.dtype), &lo, &hi)
    }

    /// The value of a dim, computed once at the start of the function.
    fn dim(&mut self, d: &Dim) -> String {
        if let Some(v) = self.dims.get(d) {
            return v.clone();
        }
        let here = (std::mem::replace(&mut self.t.out, std::mem::take(&mut self.entry)), std::mem::replace(&mut self.t.depth, 2));
        let v = self.poly(d);
        (self.entry, self.t.depth) = (std::mem::replace(&mut self.t.out, here.0), here.1);
        self.dims.insert(d.clone(), v.clone());
        v
    }

    /// The polynomial of a dim at the current place.
    fn poly(&mut self, d: &Dim) -> String {
        let int = Ty::INDEX;
        let mut sum: Option<String> = None;
        for (monomial, c) in d.terms() {
            let mut product = self.t.constant(1, Literal::i64(c));
            for a in &monomial {
                let v = self.atom(a);
                product = scalar::bin(&mut self.t, BinOp::Mul, int, &product, &v);
            }
            sum = Some(match sum {
                Some(s) => scalar::bin(&mut self.t, BinOp::Add, int, &s, &product),
                None => product,
            });
        }
        sum.unwrap_or_else(|| self.t.constant(1, Literal::i64(0)))
    }

    fn atom(&mut self, a: &Atom) -> String {
        let int = Ty::INDEX;
        let (op, x, y) = match a {
            Atom::Sym(s) => {
                let i = self.k.syms.iter().position(|x| x == s).unwrap_or(0);
                let i = self.t.def(&format!("arith.constant {i} : index"));
                return self.t.def(&format!("memref.load {}[{i}] : memref<?xi64>", self.syms));
            }
            Atom::FloorDiv(x, y) => (BinOp::Div, x, y),
            Atom::Mod(x, y) => (BinOp::Mod, x, y),
            Atom::Min(x, y) => (BinOp::Min, x, y),
            Atom::Max(x, y) => (BinOp::Max, x, y),
        };
        let (x, y) = (self.poly(x), self.poly(y));
        if op == BinOp::Div {
            // Toward minus infinity: what is left after the remainder divides evenly.
            let r = scalar::bin(&mut self.t, BinOp::Mod, int, &x, &y);
            let even = scalar::bin(&mut self.t, BinOp::Sub, int, &x, &r);
            return scalar::bin(&mut self.t, op, int, &even, &y);
        }
        scalar::bin(&mut self.t, op, int, &x, &y)
    }
}
