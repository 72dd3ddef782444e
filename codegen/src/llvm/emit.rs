//! Kernels as LLVM IR text. Text keeps this file free of unsafe code and shows in one place what is emitted; LLVM's parser and verifier check it.
//!
//! This file emits what kernels do; `host` and `device` emit the functions around it. No fast-math flag is ever set; multiply-add is contracted only where the loop IR says `fma`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use transc_ir::loops::{Block, Buf, Inst, Kernel, Matrix, MatrixInst, ReduceOp, Reg, Space, Stmt, Ty, Unroll};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{Atom, DType, Dim};

use super::{device, host, ops, target_inst};
use crate::Target;

/// The text of a module with one kernel.
pub(super) fn kernel(k: &Kernel, target: &Target) -> String {
    let mut e = Emitter::new(k);
    (e.vnni, e.bf16, e.vbmi) = (target.has_byte_dot(), target.multiplies_bf16(), target.looks_up_bytes());
    for (i, ty) in k.vars.iter().enumerate() {
        let _ = writeln!(e.entry, "  %v{i} = alloca {}", reg_type(*ty));
    }
    e.block(&k.body);
    let body = std::mem::take(&mut e.body);
    if target.is_device() { device::entry(e, &body) } else { host::functions(e, &body, target) }
}

/// The type of a register. `bool` is one bit per lane; `bf16` travels as its bits.
pub(super) fn reg_type(ty: Ty) -> String {
    vector_of(scalar_type(ty.dtype), ty.lanes)
}

pub(super) fn scalar_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "float",
        DType::F64 => "double",
        DType::F16 => "half",
        DType::Bf16 | DType::U16 | DType::I16 => "i16",
        DType::U8 | DType::I8 => "i8",
        DType::U32 | DType::I32 => "i32",
        DType::U64 | DType::I64 => "i64",
        DType::Bool => "i1",
    }
}

pub(super) fn vector_of(scalar: &str, lanes: u16) -> String {
    if lanes == 1 { scalar.into() } else { format!("<{lanes} x {scalar}>") }
}

fn memory_type(ty: Ty) -> String {
    if ty.dtype == DType::Bool { vector_of("i8", ty.lanes) } else { reg_type(ty) }
}

pub(super) struct Emitter<'a> {
    pub(super) k: &'a Kernel,
    /// True if the target has dot products of bytes.
    pub(super) vnni: bool,
    /// True if the target has dot products of pairs of `bf16`.
    pub(super) bf16: bool,
    /// True if the target looks bytes up in registers.
    pub(super) vbmi: bool,
    entry: String,
    body: String,
    /// The current basic block.
    label: String,
    next: u32,
    dims: BTreeMap<Dim, String>,
    declares: BTreeSet<String>,
    metadata: Vec<String>,
}

impl<'a> Emitter<'a> {
    /// An emitter at the start of a function.
    pub(super) fn new(k: &'a Kernel) -> Self {
        Emitter {
            k,
            vnni: false,
            bf16: false,
            vbmi: false,
            entry: String::new(),
            body: String::new(),
            label: "start".into(),
            next: 0,
            dims: BTreeMap::new(),
            declares: BTreeSet::new(),
            metadata: Vec::new(),
        }
    }

    /// Notes a declaration.
    pub(super) fn declare(&mut self, text: String) {
        self.declares.insert(text);
    }

    /// The code of the entry block: variables and dims.
    pub(super) fn entry_code(&self) -> &str {
        &self.entry
    }

    /// The declarations.
    pub(super) fn declarations(&self) -> impl Iterator<Item = &String> {
        self.declares.iter()
    }

    /// The metadata.
    pub(super) fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// A fresh name.
    pub(super) fn tmp(&mut self) -> String {
        self.next += 1;
        format!("%t{}", self.next)
    }

    /// Appends `name = text` and gives the name.
    pub(super) fn def(&mut self, text: &str) -> String {
        let t = self.tmp();
        let _ = writeln!(self.body, "  {t} = {text}");
        t
    }

    /// Calls an external function or intrinsic.
    pub(super) fn call(&mut self, result: &str, name: &str, args: &[(String, String)]) -> String {
        let types: Vec<&str> = args.iter().map(|(t, _)| t.as_str()).collect();
        self.declares.insert(format!("declare {result} @{name}({})", types.join(", ")));
        let values: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        self.def(&format!("call {result} @{name}({})", values.join(", ")))
    }

    fn new_label(&mut self) -> String {
        self.next += 1;
        format!("L{}", self.next)
    }

    fn start(&mut self, label: &str) {
        let _ = writeln!(self.body, "{label}:");
        self.label = label.into();
    }

    fn block(&mut self, block: &Block) {
        for s in block {
            self.stmt(s);
        }
    }

    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(r, inst) => {
                let v = self.inst(*r, inst);
                // Every register gets its own name, also where the value is an existing one.
                let ty = reg_type(self.k.reg_ty(*r));
                let _ = writeln!(self.body, "  %r{} = {}", r.0, alias(&ty, &v, self.k.reg_ty(*r)));
            }
            Stmt::Set(v, r) => {
                let ty = reg_type(self.k.reg_ty(*r));
                let _ = writeln!(self.body, "  store {ty} {}, ptr %v{}", reg(*r), v.0);
            }
            Stmt::Store { buf, index, value, count } => self.store(*buf, *index, *value, *count),
            Stmt::For { iv, lo, hi, step, unroll, body } => self.for_loop(*iv, *lo, *hi, *step, *unroll, body),
            Stmt::If { cond, then, els } => {
                let (yes, no, end) = (self.new_label(), self.new_label(), self.new_label());
                let _ = writeln!(self.body, "  br i1 {}, label %{yes}, label %{no}", reg(*cond));
                self.start(&yes);
                self.block(then);
                let _ = writeln!(self.body, "  br label %{end}");
                self.start(&no);
                self.block(els);
                let _ = writeln!(self.body, "  br label %{end}");
                self.start(&end);
            }
            Stmt::Fail(status) => {
                // What follows cannot run, but the text needs a block for it.
                let rest = self.new_label();
                let status = *status as i32;
                let _ = match self.k.block {
                    None => writeln!(self.body, "  ret i32 {status}"),
                    Some(_) => {
                        let old = self.tmp();
                        let word = "ptr addrspace(1) %status";
                        writeln!(self.body, "  {old} = atomicrmw umax {word}, i32 {status} monotonic\n  ret void")
                    }
                };
                self.start(&rest);
            }
            Stmt::Barrier => {
                self.declares.insert("declare void @llvm.nvvm.barrier.cta.sync.aligned.all(i32)".into());
                let _ = writeln!(self.body, "  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)");
            }
            Stmt::Matrix(inst) => self.matrix(*inst),
            // A device has no such hint at this level.
            Stmt::Prefetch { .. } if self.k.block.is_some() => {}
            Stmt::Prefetch { buf, index } => {
                let p = self.address(*buf, *index, false);
                self.declares.insert("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)".into());
                let _ = writeln!(self.body, "  call void @llvm.prefetch.p0(ptr {p}, i32 0, i32 2, i32 1)");
            }
        }
    }

    /// By the instructions that take the numbers of registers, since ours are fixed.
    fn matrix(&mut self, inst: MatrixInst) {
        let number = |m: Matrix| ("i8", m.0.to_string());
        let (name, args) = match inst {
            MatrixInst::Zero(m) => ("tilezero".to_string(), vec![number(m)]),
            MatrixInst::Load { matrix, buf, index, stride } | MatrixInst::Store { matrix, buf, index, stride } => {
                let place = self.address(buf, index, true);
                let bytes = self.def(&format!("mul nsw i64 {}, {}", reg(stride), self.k.buf_dtype(buf).size_bytes()));
                let name = if matches!(inst, MatrixInst::Load { .. }) { "tileloadd64" } else { "tilestored64" };
                (name.into(), vec![number(matrix), ("ptr", place), ("i64", bytes)])
            }
            MatrixInst::Dot { dot, acc, a, b } => (dot.name().into(), [acc, a, b].map(number).into()),
        };
        let types: Vec<&str> = args.iter().map(|(t, _)| if *t == "i8" { "i8 immarg" } else { *t }).collect();
        self.declares.insert(format!("declare void @llvm.x86.{name}({})", types.join(", ")));
        let args: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        let _ = writeln!(self.body, "  call void @llvm.x86.{name}({})", args.join(", "));
    }

    fn for_loop(&mut self, iv: Reg, lo: Reg, hi: Reg, step: i64, unroll: Unroll, body: &Block) {
        let (head, inside, end) = (self.new_label(), self.new_label(), self.new_label());
        let next = self.tmp();
        let before = std::mem::take(&mut self.label);
        let latch = self.new_label();
        let _ = writeln!(self.body, "  br label %{head}");
        self.start(&head);
        let _ = writeln!(self.body, "  %r{} = phi i64 [ {}, %{before} ], [ {next}, %{latch} ]", iv.0, reg(lo));
        let go = self.def(&format!("icmp slt i64 %r{}, {}", iv.0, reg(hi)));
        // Without a count, a loop inside others is taken for the hottest, and its constants for what registers are for.
        let weights = if unroll == Unroll::Few { self.few_turns() } else { String::new() };
        let _ = writeln!(self.body, "  br i1 {go}, label %{inside}, label %{end}{weights}");
        self.start(&inside);
        self.block(body);
        let _ = writeln!(self.body, "  br label %{latch}");
        self.start(&latch);
        let hint = match unroll {
            Unroll::Auto => String::new(),
            Unroll::No | Unroll::Few | Unroll::Interleave(_) => self.loop_metadata("llvm.loop.unroll.disable"),
            Unroll::Full => self.loop_metadata("llvm.loop.unroll.full"),
        };
        let _ = writeln!(self.body, "  {next} = add nsw i64 %r{}, {step}\n  br label %{head}{hint}", iv.0);
        self.start(&end);
    }

    fn few_turns(&mut self) -> String {
        let n = self.metadata.len();
        self.metadata.push(format!("!{n} = !{{!\"branch_weights\", i32 2, i32 1}}"));
        format!(", !prof !{n}")
    }

    fn loop_metadata(&mut self, hint: &str) -> String {
        let n = self.metadata.len();
        self.metadata.push(format!("!{n} = distinct !{{!{n}, !{}}}", n + 1));
        self.metadata.push(format!("!{} = !{{!\"{hint}\"}}", n + 1));
        format!(", !llvm.loop !{n}")
    }

    fn address(&mut self, buf: Buf, index: Reg, inbounds: bool) -> String {
        let (name, d) = match buf {
            Buf::Param(i) => (format!("%b{i}"), self.k.buf_dtype(buf)),
            Buf::Local(i) => (format!("%l{i}"), self.k.buf_dtype(buf)),
        };
        let ty = memory_type(Ty::scalar(d));
        let (flag, ptr) = (if inbounds { "inbounds " } else { "" }, self.pointer(buf));
        self.def(&format!("getelementptr {flag}{ty}, {ptr} {name}, i64 {}", reg(index)))
    }

    /// The type of pointers into a buffer.
    fn pointer(&self, buf: Buf) -> &'static str {
        match (self.k.block, buf) {
            (None, _) => "ptr",
            (Some(_), Buf::Local(i)) if self.k.locals[i as usize].space == Space::Shared => "ptr addrspace(3)",
            (Some(_), _) => "ptr addrspace(1)",
        }
    }

    /// The mask of the first `count` lanes.
    fn mask(&mut self, lanes: u16, count: &str) -> String {
        let n = self.def(&format!("trunc i64 {count} to i32"));
        let n = self.splat("i32", &n, lanes);
        let iota: Vec<String> = (0..lanes).map(|i| format!("i32 {i}")).collect();
        self.def(&format!("icmp slt <{lanes} x i32> <{}>, {n}", iota.join(", ")))
    }

    pub(super) fn splat(&mut self, scalar: &str, value: &str, lanes: u16) -> String {
        if lanes == 1 {
            return value.into();
        }
        let one = self.def(&format!("insertelement <{lanes} x {scalar}> poison, {scalar} {value}, i64 0"));
        self.def(&format!(
            "shufflevector <{lanes} x {scalar}> {one}, <{lanes} x {scalar}> poison, <{lanes} x i32> zeroinitializer"
        ))
    }

    fn load(&mut self, buf: Buf, index: Reg, ty: Ty, count: Option<Reg>) -> String {
        let mem = memory_type(ty);
        let (align, ptr) = (ty.dtype.size_bytes(), self.pointer(buf));
        let raw = match count {
            Some(c) if ty.lanes > 1 => {
                let p = self.address(buf, index, false);
                let mask = self.mask(ty.lanes, &reg(c));
                let name = format!("llvm.masked.load.v{}{}.p0", ty.lanes, ops::mangled(memory_scalar(ty.dtype)));
                let m = format!("<{} x i1>", ty.lanes);
                self.declares.insert(format!("declare {mem} @{name}(ptr, i32 immarg, {m}, {mem})"));
                self.def(&format!("call {mem} @{name}(ptr {p}, i32 {align}, {m} {mask}, {mem} zeroinitializer)"))
            }
            Some(c) => {
                // One lane that may be off: read nothing then.
                let (yes, end) = (self.new_label(), self.new_label());
                let on = self.def(&format!("icmp sgt i64 {}, 0", reg(c)));
                let before = self.label.clone();
                let _ = writeln!(self.body, "  br i1 {on}, label %{yes}, label %{end}");
                self.start(&yes);
                let p = self.address(buf, index, true);
                let v = self.def(&format!("load {mem}, {ptr} {p}, align {align}"));
                let _ = writeln!(self.body, "  br label %{end}");
                self.start(&end);
                self.def(&format!("phi {mem} [ {v}, %{yes} ], [ zeroinitializer, %{before} ]"))
            }
            None => {
                let p = self.address(buf, index, true);
                self.def(&format!("load {mem}, {ptr} {p}, align {align}"))
            }
        };
        if ty.dtype == DType::Bool { self.def(&format!("icmp ne {mem} {raw}, zeroinitializer")) } else { raw }
    }

    fn store(&mut self, buf: Buf, index: Reg, value: Reg, count: Option<Reg>) {
        let ty = self.k.reg_ty(value);
        let mem = memory_type(ty);
        let (align, ptr) = (ty.dtype.size_bytes(), self.pointer(buf));
        let v = if ty.dtype == DType::Bool {
            self.def(&format!("zext {} {} to {mem}", reg_type(ty), reg(value)))
        } else {
            reg(value)
        };
        match count {
            Some(c) if ty.lanes > 1 => {
                let p = self.address(buf, index, false);
                // LLVM 22 writes four bytes where it knows that one lane of a narrower element is stored; it must not know.
                let hidden = (align < 4).then(|| self.def(&format!("call i64 asm \"\", \"=r,0\"(i64 {})", reg(c))));
                let mask = self.mask(ty.lanes, &hidden.unwrap_or_else(|| reg(c)));
                let name = format!("llvm.masked.store.v{}{}.p0", ty.lanes, ops::mangled(memory_scalar(ty.dtype)));
                let m = format!("<{} x i1>", ty.lanes);
                self.declares.insert(format!("declare void @{name}({mem}, ptr, i32 immarg, {m})"));
                let _ = writeln!(self.body, "  call void @{name}({mem} {v}, ptr {p}, i32 {align}, {m} {mask})");
            }
            Some(c) => {
                let (yes, end) = (self.new_label(), self.new_label());
                let on = self.def(&format!("icmp sgt i64 {}, 0", reg(c)));
                let _ = writeln!(self.body, "  br i1 {on}, label %{yes}, label %{end}");
                self.start(&yes);
                let p = self.address(buf, index, true);
                let _ = writeln!(self.body, "  store {mem} {v}, {ptr} {p}, align {align}\n  br label %{end}");
                self.start(&end);
            }
            None => {
                let p = self.address(buf, index, true);
                let _ = writeln!(self.body, "  store {mem} {v}, {ptr} {p}, align {align}");
            }
        }
    }

    fn inst(&mut self, dst: Reg, inst: &Inst) -> String {
        let ty = self.k.reg_ty(dst);
        let at = |r: &Reg| self.k.reg_ty(*r);
        match inst {
            Inst::Const(l) => literal(*l),
            Inst::Dim(d) => self.dim(d),
            Inst::Lo => "%lo".into(),
            Inst::Hi => "%hi".into(),
            Inst::Thread => "%thread".into(),
            Inst::Get(v) => self.def(&format!("load {}, ptr %v{}", reg_type(ty), v.0)),
            Inst::Load { buf, index, ty, count } => self.load(*buf, *index, *ty, *count),
            Inst::Un(op, a) => {
                let t = at(a);
                ops::un(self, *op, t, &reg(*a))
            }
            Inst::Bin(op, a, b) => {
                let t = at(a);
                ops::bin(self, *op, t, &reg(*a), &reg(*b))
            }
            Inst::Fma(a, b, c) => ops::fma(self, ty, [&reg(*a), &reg(*b), &reg(*c)]),
            Inst::Select(c, a, b) => {
                let (tc, t) = (reg_type(at(c)), reg_type(ty));
                self.def(&format!("select {tc} {}, {t} {}, {t} {}", reg(*c), reg(*a), reg(*b)))
            }
            Inst::Cast(d, a) => {
                let t = at(a);
                ops::cast(self, t, *d, &reg(*a))
            }
            Inst::Bitcast(_, a) => {
                let t = reg_type(at(a));
                self.def(&format!("bitcast {t} {} to {}", reg(*a), reg_type(ty)))
            }
            Inst::Splat(n, a) => self.splat(scalar_type(ty.dtype), &reg(*a), *n),
            Inst::Lanes(t) => {
                let s = scalar_type(t.dtype);
                let lanes: Vec<String> = (0..t.lanes).map(|i| format!("{s} {i}")).collect();
                if t.lanes == 1 { "0".into() } else { format!("<{}>", lanes.join(", ")) }
            }
            Inst::Extract(a, i) => {
                let t = reg_type(at(a));
                self.def(&format!("extractelement {t} {}, i64 {i}", reg(*a)))
            }
            Inst::Insert(a, i, x) => {
                let t = reg_type(ty);
                self.def(&format!("insertelement {t} {}, {} {}, i64 {i}", reg(*a), scalar_type(ty.dtype), reg(*x)))
            }
            Inst::Shuffle(a, b, lanes) => {
                let t = reg_type(at(a));
                let picks: Vec<String> = lanes.iter().map(|i| format!("i32 {i}")).collect();
                self.def(&format!(
                    "shufflevector {t} {}, {t} {}, <{} x i32> <{}>",
                    reg(*a),
                    reg(*b),
                    lanes.len(),
                    picks.join(", ")
                ))
            }
            Inst::Reduce(op, a) => {
                let t = at(a);
                self.reduce(*op, t, &reg(*a))
            }
            Inst::Target(t, args) => {
                let types: Vec<Ty> = args.iter().map(at).collect();
                let names: Vec<String> = args.iter().map(|r| reg(*r)).collect();
                target_inst::emit(self, *t, &types, &names)
            }
        }
    }

    /// Lane `i` with lane `i + n/2`, halving.
    fn reduce(&mut self, op: ReduceOp, ty: Ty, value: &str) -> String {
        let op = match op {
            ReduceOp::Add => BinOp::Add,
            ReduceOp::Mul => BinOp::Mul,
            ReduceOp::Min => BinOp::Min,
            ReduceOp::Max => BinOp::Max,
        };
        let (mut v, mut n) = (value.to_string(), ty.lanes);
        while n > 1 {
            let half = n / 2;
            let t = vector_of(scalar_type(ty.dtype), n);
            let pick = |from: u16| (from..from + half).map(|i| format!("i32 {i}")).collect::<Vec<_>>().join(", ");
            let lo = self.def(&format!("shufflevector {t} {v}, {t} poison, <{half} x i32> <{}>", pick(0)));
            let hi = self.def(&format!("shufflevector {t} {v}, {t} poison, <{half} x i32> <{}>", pick(half)));
            if half == 1 {
                let one = |e: &mut Self, x: &str| e.def(&format!("extractelement <1 x {}> {x}, i64 0", scalar_type(ty.dtype)));
                let (lo, hi) = (one(self, &lo), one(self, &hi));
                return ops::bin(self, op, Ty::scalar(ty.dtype), &lo, &hi);
            }
            v = ops::bin(self, op, Ty::vector(ty.dtype, half), &lo, &hi);
            n = half;
        }
        v
    }

    /// The value of a dim, computed once in the entry block.
    pub(super) fn dim(&mut self, d: &Dim) -> String {
        if let Some(c) = d.as_const() {
            return c.to_string();
        }
        if let Some(v) = self.dims.get(d) {
            return v.clone();
        }
        // Written to the entry block, from where it reaches everything.
        let body = std::mem::take(&mut self.body);
        let sum = self.poly(d);
        let code = std::mem::replace(&mut self.body, body);
        self.entry.push_str(&code);
        self.dims.insert(d.clone(), sum.clone());
        sum
    }

    fn atom(&mut self, a: &Atom) -> String {
        let two = |e: &mut Self, a: &Dim, b: &Dim| (e.poly(a), e.poly(b));
        match a {
            Atom::Sym(s) => {
                let i = self.k.syms.iter().position(|x| x == s).unwrap_or(0);
                if self.k.block.is_some() {
                    return format!("%s{i}");
                }
                let p = self.def(&format!("getelementptr inbounds i64, ptr %syms, i64 {i}"));
                self.def(&format!("load i64, ptr {p}"))
            }
            Atom::FloorDiv(a, b) => {
                let (a, b) = two(self, a, b);
                ops::floor_div(self, &a, &b).0
            }
            Atom::Mod(a, b) => {
                let (a, b) = two(self, a, b);
                ops::floor_div(self, &a, &b).1
            }
            Atom::Min(a, b) => {
                let (a, b) = two(self, a, b);
                ops::bin(self, BinOp::Min, Ty::INDEX, &a, &b)
            }
            Atom::Max(a, b) => {
                let (a, b) = two(self, a, b);
                ops::bin(self, BinOp::Max, Ty::INDEX, &a, &b)
            }
        }
    }

    /// The polynomial of a dim at the current place.
    fn poly(&mut self, d: &Dim) -> String {
        if let Some(c) = d.as_const() {
            return c.to_string();
        }
        let mut sum = String::from("0");
        for (monomial, c) in d.terms() {
            let mut product = c.to_string();
            for a in &monomial {
                let v = self.atom(a);
                product = self.def(&format!("mul nsw i64 {product}, {v}"));
            }
            sum = self.def(&format!("add nsw i64 {sum}, {product}"));
        }
        sum
    }
}

pub(super) fn reg(r: Reg) -> String {
    format!("%r{}", r.0)
}

fn memory_scalar(d: DType) -> &'static str {
    if d == DType::Bool { "i8" } else { scalar_type(d) }
}

/// A definition that gives a value another name; LLVM removes it at once.
fn alias(ty: &str, value: &str, t: Ty) -> String {
    if t.dtype.is_float() && t.dtype != DType::Bf16 {
        format!("select i1 true, {ty} {value}, {ty} {value}")
    } else {
        format!(
            "or {ty} {value}, {}",
            if t.lanes == 1 && t.dtype == DType::Bool {
                "false"
            } else if t.lanes == 1 {
                "0"
            } else {
                "zeroinitializer"
            }
        )
    }
}

/// A constant in LLVM's syntax.
pub(super) fn literal(l: Literal) -> String {
    match l.dtype {
        // Floats as the bits of a double, which is exact.
        DType::F32 => format!("0x{:016X}", f64::from(f32::from_bits(l.bits as u32)).to_bits()),
        DType::F64 => format!("0x{:016X}", l.bits),
        DType::F16 => format!("0xH{:04X}", l.bits),
        DType::Bool => if l.bits != 0 { "true" } else { "false" }.into(),
        DType::U64 | DType::Bf16 | DType::U8 | DType::U16 | DType::U32 => l.bits.to_string(),
        _ => l.to_i64().to_string(),
    }
}
