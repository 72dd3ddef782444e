//! Kernels as Cranelift functions: control flow and memory.

use std::collections::BTreeMap;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Block as ClifBlock, BlockArg, ExtFuncData, ExternalName, FuncRef, Function, InstBuilder as _, MemFlagsData,
    Signature, StackSlotData, StackSlotKind, Type, UserExternalName, UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use transc_ir::loops::{Access, Block, Buf, Inst, Kernel, Reg, Stmt, Ty};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::{Atom, DType, Dim};

use super::parts::{self, Parts};
use super::{cast, lanes, ops};
use crate::scratch::local_offsets;

/// The function of a kernel, with the names of the functions that it calls.
pub(super) fn kernel(k: &Kernel, isa: &dyn TargetIsa) -> (Function, Vec<String>) {
    // `KernelFn` of the runtime's interface.
    let mut sig = Signature::new(CallConv::SystemV);
    sig.params = vec![AbiParam::new(types::I64); 5];
    sig.returns = vec![AbiParam::new(types::I32)];
    let mut function = Function::with_name_signature(UserFuncName::user(0, 0), sig);
    let mut context = FunctionBuilderContext::new();
    let mut f = FunctionBuilder::new(&mut function, &mut context);
    let entry = f.create_block();
    f.append_block_params_for_function_params(entry);
    f.switch_to_block(entry);
    let [bufs, syms, scratch, lo, hi] = f.block_params(entry) else { unreachable!("five parameters were declared") };
    let (bufs, scratch) = (*bufs, *scratch);
    let mut e = Emitter {
        k,
        syms: *syms,
        lo: *lo,
        hi: *hi,
        regs: vec![Parts::new(); k.regs.len()],
        vars: Vec::new(),
        bases: BTreeMap::new(),
        dims: BTreeMap::new(),
        literals: BTreeMap::new(),
        imports: Vec::new(),
        f,
    };
    e.vars = k.vars.iter().map(|ty| e.declare(*ty)).collect();
    for i in 0..k.bufs.len() {
        let base = e.f.ins().load(types::I64, read_only(), bufs, i as i32 * 8);
        e.bases.insert(Buf::Param(i as u32), base);
    }
    for (i, offset) in local_offsets(k).iter().enumerate() {
        let offset = e.poly(offset);
        let base = e.f.ins().iadd(scratch, offset);
        e.bases.insert(Buf::Local(i as u32), base);
    }
    // Computed here, dims reach every block.
    e.find_dims(&k.body);
    e.block(&k.body);
    let ok = e.f.ins().iconst(types::I32, 0);
    e.f.ins().return_(&[ok]);
    let Emitter { mut f, imports, .. } = e;
    f.seal_all_blocks();
    f.finalize(isa.frontend_config());
    (function, imports.into_iter().map(|(name, _)| name).collect())
}

/// Memory that no one writes while the kernel runs.
fn read_only() -> MemFlagsData {
    plain().with_readonly()
}

/// Memory of a buffer: inside it, but aligned to elements only.
pub(super) fn plain() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// State of the emission of one kernel.
pub(super) struct Emitter<'a> {
    pub(super) f: FunctionBuilder<'a>,
    k: &'a Kernel,
    syms: Value,
    lo: Value,
    hi: Value,
    regs: Vec<Parts>,
    vars: Vec<Vec<Variable>>,
    /// First byte of each buffer.
    bases: BTreeMap<Buf, Value>,
    dims: BTreeMap<Dim, Value>,
    /// Registers with one known value in all lanes: vector shifts want it.
    literals: BTreeMap<Reg, Literal>,
    imports: Vec<(String, FuncRef)>,
}

impl Emitter<'_> {
    fn declare(&mut self, ty: Ty) -> Vec<Variable> {
        let (t, n) = parts::layout(ty);
        (0..n).map(|_| self.f.declare_var(t)).collect()
    }

    fn ty(&self, r: Reg) -> Ty {
        self.k.reg_ty(r)
    }

    fn reg(&self, r: Reg) -> Parts {
        self.regs[r.0 as usize].clone()
    }

    fn scalar(&self, r: Reg) -> Value {
        self.regs[r.0 as usize][0]
    }

    pub(super) fn index(&mut self, v: i64) -> Value {
        self.f.ins().iconst(types::I64, v)
    }

    /// Starts a block; what came before must have ended.
    fn start(&mut self, block: ClifBlock) {
        self.f.switch_to_block(block);
    }

    fn block(&mut self, block: &Block) {
        for s in block {
            self.stmt(s);
        }
    }

    fn stmt(&mut self, s: &Stmt) {
        match s {
            Stmt::Let(r, inst) => self.regs[r.0 as usize] = self.inst(*r, inst),
            Stmt::Set(v, r) => {
                for (var, value) in self.vars[v.0 as usize].clone().into_iter().zip(self.reg(*r)) {
                    self.f.def_var(var, value);
                }
            }
            Stmt::Store { buf, index, value, count } => self.store(*buf, *index, *value, *count),
            Stmt::For { iv, lo, hi, step, body, .. } => {
                let (lo, hi) = (self.scalar(*lo), self.scalar(*hi));
                self.for_loop(lo, hi, *step, |e, i| {
                    e.regs[iv.0 as usize] = [i].into_iter().collect();
                    e.block(body);
                });
            }
            Stmt::If { cond, then, els } => {
                let cond = self.scalar(*cond);
                self.if_else(cond, |e| e.block(then), |e| e.block(els));
            }
            Stmt::Fail(status) => {
                let status = self.f.ins().iconst(types::I32, *status as i64);
                self.f.ins().return_(&[status]);
                // What follows cannot run, but needs a block.
                let rest = self.f.create_block();
                self.start(rest);
            }
            // Cranelift has no prefetch, and a hint may be dropped; a unit of host code is one thread;
            // [`crate::Backend::target`] has no matrix registers.
            Stmt::Prefetch { .. } | Stmt::Barrier | Stmt::Matrix(_) => {}
        }
    }

    /// `for i in (lo..hi).step_by(step)`.
    fn for_loop(&mut self, lo: Value, hi: Value, step: i64, body: impl FnOnce(&mut Self, Value)) {
        let (inside, end) = (self.f.create_block(), self.f.create_block());
        let i = self.f.append_block_param(inside, types::I64);
        let any = self.f.ins().icmp(IntCC::SignedLessThan, lo, hi);
        self.f.ins().brif(any, inside, &[BlockArg::Value(lo)], end, &[]);
        self.start(inside);
        body(self, i);
        let next = self.f.ins().iadd_imm_s(i, step);
        let more = self.f.ins().icmp(IntCC::SignedLessThan, next, hi);
        self.f.ins().brif(more, inside, &[BlockArg::Value(next)], end, &[]);
        self.start(end);
    }

    fn if_else(&mut self, cond: Value, then: impl FnOnce(&mut Self), els: impl FnOnce(&mut Self)) {
        let (yes, no, end) = (self.f.create_block(), self.f.create_block(), self.f.create_block());
        self.f.ins().brif(cond, yes, &[], no, &[]);
        self.start(yes);
        then(self);
        self.f.ins().jump(end, &[]);
        self.start(no);
        els(self);
        self.f.ins().jump(end, &[]);
        self.start(end);
    }

    /// `while test() { body() }`.
    pub(super) fn while_loop(&mut self, test: impl FnOnce(&mut Self) -> Value, body: impl FnOnce(&mut Self)) {
        let (head, inside, end) = (self.f.create_block(), self.f.create_block(), self.f.create_block());
        self.f.ins().jump(head, &[]);
        self.start(head);
        let go = test(self);
        self.f.ins().brif(go, inside, &[], end, &[]);
        self.start(inside);
        body(self);
        self.f.ins().jump(head, &[]);
        self.start(end);
    }

    fn address(&mut self, buf: Buf, index: Reg) -> Value {
        let bytes = self.k.buf_dtype(buf).size_bytes() as i64;
        let index = self.scalar(index);
        let offset = self.f.ins().imul_imm_s(index, bytes);
        self.f.ins().iadd(self.bases[&buf], offset)
    }

    fn load(&mut self, buf: Buf, index: Reg, ty: Ty, count: Option<Reg>) -> Parts {
        let read = matches!(buf, Buf::Param(i) if self.k.bufs[i as usize].access == Access::Read);
        let flags = if read { read_only() } else { plain() };
        let p = self.address(buf, index);
        // `bool` is a byte in memory.
        let memory = if ty.dtype == DType::Bool { ty.with_dtype(DType::U8) } else { ty };
        let v = match count {
            None => self.load_parts(memory, flags, p),
            Some(c) => {
                let (t, n) = parts::layout(memory);
                let vars: Vec<Variable> = (0..n).map(|_| self.f.declare_var(t)).collect();
                let set = |e: &mut Self, values: Parts| vars.iter().zip(values).for_each(|(v, x)| e.f.def_var(*v, x));
                let c = self.scalar(c);
                let all = self.f.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, c, i64::from(ty.lanes));
                self.if_else(
                    all,
                    |e| {
                        let v = e.load_parts(memory, flags, p);
                        set(e, v);
                    },
                    |e| {
                        // Through a zeroed copy of the active lanes on the stack.
                        let copy = e.stack(memory);
                        let zero = ops::zero(e, memory);
                        e.store_parts(memory, copy, &zero);
                        e.copy_elements(memory, flags, c, p, copy);
                        let v = e.load_parts(memory, plain(), copy);
                        set(e, v);
                    },
                );
                vars.iter().map(|v| self.f.use_var(*v)).collect()
            }
        };
        if ty.dtype == DType::Bool { cast::cast(self, memory, DType::Bool, &v) } else { v }
    }

    fn store(&mut self, buf: Buf, index: Reg, value: Reg, count: Option<Reg>) {
        let (mut ty, mut v) = (self.ty(value), self.reg(value));
        if ty.dtype == DType::Bool {
            v = cast::cast(self, ty, DType::U8, &v);
            ty = ty.with_dtype(DType::U8);
        }
        let p = self.address(buf, index);
        let Some(c) = count else {
            self.store_parts(ty, p, &v);
            return;
        };
        let c = self.scalar(c);
        let all = self.f.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, c, i64::from(ty.lanes));
        self.if_else(
            all,
            |e| e.store_parts(ty, p, &v),
            |e| {
                let copy = e.stack(ty);
                e.store_parts(ty, copy, &v);
                e.copy_elements(ty, plain(), c, copy, p);
            },
        );
    }

    /// Memory for one value of a type.
    pub(super) fn stack(&mut self, ty: Ty) -> Value {
        let bytes = u32::from(ty.lanes) * ty.dtype.size_bytes() as u32;
        let slot = self.f.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
        self.f.ins().stack_addr(types::I64, slot, 0)
    }

    /// Copies `count` elements.
    fn copy_elements(&mut self, ty: Ty, flags: MemFlagsData, count: Value, from: Value, to: Value) {
        let size = ty.dtype.size_bytes() as i64;
        let t = parts::scalar_type(ty.dtype);
        let zero = self.index(0);
        self.for_loop(zero, count, 1, |e, i| {
            let offset = e.f.ins().imul_imm_s(i, size);
            let (from, to) = (e.f.ins().iadd(from, offset), e.f.ins().iadd(to, offset));
            let x = e.f.ins().load(t, flags, from, 0);
            e.f.ins().store(plain(), x, to, 0);
        });
    }

    pub(super) fn load_parts(&mut self, ty: Ty, flags: MemFlagsData, p: Value) -> Parts {
        let (t, n) = parts::layout(ty);
        (0..n).map(|i| self.f.ins().load(t, flags, p, i as i32 * t.bytes() as i32)).collect()
    }

    pub(super) fn store_parts(&mut self, ty: Ty, p: Value, v: &Parts) {
        let (t, _) = parts::layout(ty);
        for (i, x) in v.iter().enumerate() {
            self.f.ins().store(plain(), *x, p, i as i32 * t.bytes() as i32);
        }
    }

    /// Calls a function of the C library on scalars of one type.
    pub(super) fn call(&mut self, name: &str, t: Type, args: &[Value]) -> Value {
        let known = self.imports.iter().find(|(n, _)| n == name).map(|(_, f)| *f);
        let function = known.unwrap_or_else(|| {
            let mut sig = Signature::new(CallConv::SystemV);
            sig.params = vec![AbiParam::new(t); args.len()];
            sig.returns = vec![AbiParam::new(t)];
            let signature = self.f.import_signature(sig);
            let user = UserExternalName { namespace: 0, index: self.imports.len() as u32 };
            let name_ref = self.f.func.declare_imported_user_function(user);
            let data = ExtFuncData { name: ExternalName::user(name_ref), signature, colocated: false, patchable: false };
            let function = self.f.import_function(data);
            self.imports.push((name.into(), function));
            function
        });
        let call = self.f.ins().call(function, args);
        self.f.inst_results(call)[0]
    }

    fn inst(&mut self, dst: Reg, inst: &Inst) -> Parts {
        let ty = self.ty(dst);
        let one = |v: Value| -> Parts { [v].into_iter().collect() };
        match inst {
            Inst::Const(l) => {
                self.literals.insert(dst, *l);
                one(ops::literal(self, *l))
            }
            Inst::Dim(d) => one(match d.as_const() {
                Some(c) => self.index(c),
                None => self.dims[d],
            }),
            Inst::Lo => one(self.lo),
            Inst::Thread => one(self.index(0)),
            Inst::Hi => one(self.hi),
            Inst::Get(v) => self.vars[v.0 as usize].clone().into_iter().map(|x| self.f.use_var(x)).collect(),
            Inst::Load { buf, index, ty, count } => self.load(*buf, *index, *ty, *count),
            Inst::Un(op, a) => ops::un(self, *op, self.ty(*a), &self.reg(*a)),
            Inst::Bin(op, a, b) => {
                let amount = self.literals.get(b).copied();
                ops::bin(self, *op, self.ty(*a), &self.reg(*a), &self.reg(*b), amount)
            }
            Inst::Fma(a, b, c) => ops::fma(self, ty, [&self.reg(*a), &self.reg(*b), &self.reg(*c)]),
            Inst::Select(c, a, b) => ops::select(self, self.ty(*c), ty, &self.reg(*c), &self.reg(*a), &self.reg(*b)),
            Inst::Cast(d, a) => cast::cast(self, self.ty(*a), *d, &self.reg(*a)),
            Inst::Bitcast(_, a) => {
                let (t, _) = parts::layout(ty);
                self.reg(*a).into_iter().map(|x| parts::bitcast(self, t, x)).collect()
            }
            Inst::Splat(n, a) => {
                if let Some(l) = self.literals.get(a) {
                    self.literals.insert(dst, *l);
                }
                lanes::splat(self, ty.dtype, *n, self.scalar(*a))
            }
            Inst::Lanes(t) => lanes::count(self, *t),
            Inst::Extract(a, i) => one(parts::lane(self, self.ty(*a), &self.reg(*a), *i)),
            Inst::Insert(a, i, x) => {
                let mut all = parts::lanes(self, ty, &self.reg(*a));
                all[usize::from(*i)] = self.scalar(*x);
                parts::from_lanes(self, ty, &all)
            }
            Inst::Shuffle(a, b, picks) => lanes::shuffle(self, self.ty(*a), &self.reg(*a), &self.reg(*b), picks),
            Inst::Reduce(op, a) => one(lanes::reduce(self, *op, self.ty(*a), &self.reg(*a))),
            Inst::Target(t, args) => {
                let types: Vec<Ty> = args.iter().map(|r| self.ty(*r)).collect();
                let values: Vec<Parts> = args.iter().map(|r| self.reg(*r)).collect();
                lanes::target(self, *t, &types, &values)
            }
        }
    }

    fn find_dims(&mut self, block: &Block) {
        for s in block {
            match s {
                Stmt::Let(_, Inst::Dim(d)) if d.as_const().is_none() && !self.dims.contains_key(d) => {
                    let v = self.poly(d);
                    self.dims.insert(d.clone(), v);
                }
                Stmt::For { body, .. } => self.find_dims(body),
                Stmt::If { then, els, .. } => {
                    self.find_dims(then);
                    self.find_dims(els);
                }
                _ => {}
            }
        }
    }

    fn poly(&mut self, d: &Dim) -> Value {
        let mut sum = None;
        for (monomial, c) in d.terms() {
            let mut product = self.index(c);
            for a in monomial.iter() {
                let v = self.atom(a);
                product = self.f.ins().imul(product, v);
            }
            sum = Some(sum.map_or(product, |s| self.f.ins().iadd(s, product)));
        }
        sum.unwrap_or_else(|| self.index(0))
    }

    fn atom(&mut self, a: &Atom) -> Value {
        let two = |e: &mut Self, op: BinOp, a: &Dim, b: &Dim| {
            let (a, b) = (e.poly(a), e.poly(b));
            (ops::bin1(e, op, DType::I64, a, b), a, b)
        };
        match a {
            Atom::Sym(s) => {
                let i = self.k.syms.iter().position(|x| x == s).unwrap_or(0);
                self.f.ins().load(types::I64, read_only(), self.syms, i as i32 * 8)
            }
            Atom::FloorDiv(a, b) => {
                let (rest, a, b) = two(self, BinOp::Mod, a, b);
                let exact = self.f.ins().isub(a, rest);
                ops::bin1(self, BinOp::Div, DType::I64, exact, b)
            }
            Atom::Mod(a, b) => two(self, BinOp::Mod, a, b).0,
            Atom::Min(a, b) => two(self, BinOp::Min, a, b).0,
            Atom::Max(a, b) => two(self, BinOp::Max, a, b).0,
        }
    }
}
