//! Building kernels: types follow from the operands, blocks from closures.

use super::inst::{Inst, MatrixDot, MatrixInst, ReduceOp, TargetInst, Ty};
use super::kernel::{Access, Block, Buf, BufParam, Kernel, LocalBuf, Matrix, Reg, Space, Status, Stmt, Unroll, Var};
use super::verify::target;
use crate::scalar::{BinOp, Literal, UnOp};
use crate::types::{DType, Dim, Symbol};

/// Builds a [`Kernel`]. Equal pure instructions of one block are shared. A clone is a snapshot to return to.
#[derive(Clone)]
pub struct KernelBuilder {
    kernel: Kernel,
    blocks: Vec<Block>,
    /// Per open block: pure instructions already there.
    seen: Vec<Vec<(Inst, Reg)>>,
}

impl KernelBuilder {
    /// Starts a kernel with a parallel extent.
    pub fn new(name: &str, syms: Vec<Symbol>, extent: Dim) -> Self {
        let kernel = Kernel {
            name: name.into(),
            bufs: Vec::new(),
            syms,
            locals: Vec::new(),
            extent,
            block: None,
            regs: Vec::new(),
            vars: Vec::new(),
            matrices: 0,
            body: Vec::new(),
        };
        Self { kernel, blocks: vec![Vec::new()], seen: vec![Vec::new()] }
    }

    /// Ends the kernel.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.blocks.pop().unwrap_or_default();
        self.kernel
    }

    /// Appends instructions that are written elsewhere, with the registers that they add.
    pub fn append<T>(&mut self, write: impl FnOnce(&mut Vec<Ty>, &mut Block) -> T) -> T {
        let mut block = self.blocks.pop().unwrap_or_default();
        let out = write(&mut self.kernel.regs, &mut block);
        self.blocks.push(block);
        out
    }

    /// Adds a buffer parameter.
    pub fn param(&mut self, name: &str, dtype: DType, access: Access) -> Buf {
        self.kernel.bufs.push(BufParam { name: name.into(), dtype, access });
        Buf::Param((self.kernel.bufs.len() - 1) as u32)
    }

    /// Adds a scratch block of the thread.
    pub fn local(&mut self, dtype: DType, len: Dim) -> Buf {
        self.scratch(Space::Thread, dtype, len)
    }

    /// Adds a scratch block that the threads of a block share.
    pub fn shared(&mut self, dtype: DType, len: Dim) -> Buf {
        self.scratch(Space::Shared, dtype, len)
    }

    fn scratch(&mut self, space: Space, dtype: DType, len: Dim) -> Buf {
        self.kernel.locals.push(LocalBuf { space, dtype, len });
        Buf::Local((self.kernel.locals.len() - 1) as u32)
    }

    /// Makes every unit a block of this many threads.
    pub fn set_block(&mut self, threads: u32) {
        self.kernel.block = Some(threads);
    }

    /// Number of this thread in its block.
    pub fn thread(&mut self) -> Reg {
        self.push(Inst::Thread)
    }

    /// Waits for the threads of the block.
    pub fn barrier(&mut self) {
        self.stmt(Stmt::Barrier);
    }

    /// The type of a register.
    pub fn ty(&self, r: Reg) -> Ty {
        self.kernel.reg_ty(r)
    }

    /// The element type of a buffer.
    pub fn buf_dtype(&self, b: Buf) -> DType {
        self.kernel.buf_dtype(b)
    }

    fn stmt(&mut self, s: Stmt) {
        if let Some(b) = self.blocks.last_mut() {
            b.push(s);
        }
    }

    fn new_reg(&mut self, ty: Ty) -> Reg {
        self.kernel.regs.push(ty);
        Reg((self.kernel.regs.len() - 1) as u32)
    }

    /// Appends an instruction; an equal pure one in this or an enclosing block is reused.
    pub fn push(&mut self, inst: Inst) -> Reg {
        let pure = !matches!(inst, Inst::Load { .. } | Inst::Get(_));
        if pure && let Some((_, r)) = self.seen.iter().rev().flat_map(|s| s.iter().rev()).find(|(i, _)| *i == inst) {
            return *r;
        }
        let ty = self.result_ty(&inst);
        let r = self.new_reg(ty);
        self.stmt(Stmt::Let(r, inst.clone()));
        if pure && let Some(s) = self.seen.last_mut() {
            s.push((inst, r));
        }
        r
    }

    fn result_ty(&self, inst: &Inst) -> Ty {
        match inst {
            Inst::Const(l) => Ty::scalar(l.dtype),
            Inst::Dim(_) | Inst::Lo | Inst::Hi | Inst::Thread => Ty::INDEX,
            Inst::Get(v) => self.kernel.var_ty(*v),
            Inst::Load { ty, .. } | Inst::Lanes(ty) => *ty,
            Inst::Un(UnOp::IsNan | UnOp::IsInf, a) => self.ty(*a).with_dtype(DType::Bool),
            Inst::Un(_, a) | Inst::Fma(a, ..) | Inst::Insert(a, ..) => self.ty(*a),
            Inst::Bin(op, a, _) if op.is_compare() => self.ty(*a).with_dtype(DType::Bool),
            Inst::Bin(_, a, _) | Inst::Select(_, a, _) => self.ty(*a),
            Inst::Cast(d, a) | Inst::Bitcast(d, a) => self.ty(*a).with_dtype(*d),
            Inst::Splat(n, a) => Ty { lanes: *n, ..self.ty(*a) },
            Inst::Extract(a, _) | Inst::Reduce(_, a) => Ty { lanes: 1, ..self.ty(*a) },
            Inst::Shuffle(a, _, lanes) => Ty { lanes: lanes.len() as u16, ..self.ty(*a) },
            Inst::Target(t, args) => {
                let types: Vec<Ty> = args.iter().map(|r| self.ty(*r)).collect();
                // Wrong operands are the verifier's to report.
                target(*t, &types).unwrap_or(types[0])
            }
        }
    }

    /// A constant.
    pub fn lit(&mut self, v: Literal) -> Reg {
        self.push(Inst::Const(v))
    }

    /// An index constant.
    pub fn index(&mut self, v: i64) -> Reg {
        self.lit(Literal::i64(v))
    }

    /// A float or integer constant of a type, splat if the type is a vector.
    pub fn num(&mut self, ty: Ty, v: f64) -> Reg {
        let r = self.lit(Literal::from_f64(ty.dtype, v));
        self.splat(ty.lanes, r)
    }

    /// The value of a dim.
    pub fn dim(&mut self, d: &Dim) -> Reg {
        match d.as_const() {
            Some(c) => self.index(c),
            None => self.push(Inst::Dim(d.clone())),
        }
    }

    /// First unit of this call.
    pub fn lo(&mut self) -> Reg {
        self.push(Inst::Lo)
    }

    /// End of the units of this call.
    pub fn hi(&mut self) -> Reg {
        self.push(Inst::Hi)
    }

    /// Operation on one operand.
    pub fn un(&mut self, op: UnOp, a: Reg) -> Reg {
        self.push(Inst::Un(op, a))
    }

    /// Operation on two operands; index arithmetic on constants folds.
    pub fn bin(&mut self, op: BinOp, a: Reg, b: Reg) -> Reg {
        if self.ty(a) == Ty::INDEX {
            let (x, y) = (self.as_index(a), self.as_index(b));
            match (op, x, y) {
                (BinOp::Add, Some(x), Some(y)) => return self.index(x.wrapping_add(y)),
                (BinOp::Sub, Some(x), Some(y)) => return self.index(x.wrapping_sub(y)),
                (BinOp::Mul, Some(x), Some(y)) => return self.index(x.wrapping_mul(y)),
                (BinOp::Add, Some(0), _) | (BinOp::Mul, Some(1), _) => return b,
                (BinOp::Add | BinOp::Sub, _, Some(0)) | (BinOp::Mul | BinOp::Div, _, Some(1)) => return a,
                (BinOp::Mul, Some(0), _) => return a,
                (BinOp::Mul, _, Some(0)) => return b,
                _ => {}
            }
        }
        self.push(Inst::Bin(op, a, b))
    }

    /// The value of an index constant.
    pub fn as_index(&self, r: Reg) -> Option<i64> {
        self.seen.iter().flatten().find_map(|(i, x)| match i {
            Inst::Const(l) if *x == r && l.dtype == DType::I64 => Some(l.to_i64()),
            _ => None,
        })
    }

    /// Sum.
    pub fn add(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinOp::Add, a, b)
    }

    /// Difference.
    pub fn sub(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinOp::Sub, a, b)
    }

    /// Product.
    pub fn mul(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinOp::Mul, a, b)
    }

    /// `a * b + c`, one rounding.
    pub fn fma(&mut self, a: Reg, b: Reg, c: Reg) -> Reg {
        self.push(Inst::Fma(a, b, c))
    }

    /// Selection.
    pub fn select(&mut self, c: Reg, a: Reg, b: Reg) -> Reg {
        self.push(Inst::Select(c, a, b))
    }

    /// Conversion; none if the type is right.
    pub fn cast(&mut self, to: DType, a: Reg) -> Reg {
        if self.ty(a).dtype == to { a } else { self.push(Inst::Cast(to, a)) }
    }

    /// A vector of equal lanes; the scalar itself for one lane.
    pub fn splat(&mut self, lanes: u16, a: Reg) -> Reg {
        if lanes == 1 { a } else { self.push(Inst::Splat(lanes, a)) }
    }

    /// Folds the lanes; a scalar is returned as it is.
    pub fn reduce(&mut self, op: ReduceOp, a: Reg) -> Reg {
        if self.ty(a).lanes == 1 { a } else { self.push(Inst::Reduce(op, a)) }
    }

    /// A target instruction.
    pub fn target(&mut self, t: TargetInst, args: &[Reg]) -> Reg {
        self.push(Inst::Target(t, args.to_vec()))
    }

    /// Loads `lanes` elements in the buffer's dtype.
    pub fn load(&mut self, buf: Buf, index: Reg, lanes: u16) -> Reg {
        let ty = Ty::vector(self.buf_dtype(buf), lanes);
        self.push(Inst::Load { buf, index, ty, count: None })
    }

    /// Loads the first `count` of `lanes` elements, zero beyond.
    pub fn load_count(&mut self, buf: Buf, index: Reg, lanes: u16, count: Reg) -> Reg {
        let ty = Ty::vector(self.buf_dtype(buf), lanes);
        self.push(Inst::Load { buf, index, ty, count: Some(count) })
    }

    /// Loads `lanes` elements; the first `count` alone if that is given, zero beyond.
    pub fn load_part(&mut self, buf: Buf, index: Reg, lanes: u16, count: Option<Reg>) -> Reg {
        match count {
            Some(count) => self.load_count(buf, index, lanes, count),
            None => self.load(buf, index, lanes),
        }
    }

    /// Stores a value.
    pub fn store(&mut self, buf: Buf, index: Reg, value: Reg) {
        self.stmt(Stmt::Store { buf, index, value, count: None });
    }

    /// Stores the first `count` lanes of a value.
    pub fn store_count(&mut self, buf: Buf, index: Reg, value: Reg, count: Reg) {
        self.stmt(Stmt::Store { buf, index, value, count: Some(count) });
    }

    /// Stores a value; the first `count` lanes alone if that is given.
    pub fn store_part(&mut self, buf: Buf, index: Reg, value: Reg, count: Option<Reg>) {
        self.stmt(Stmt::Store { buf, index, value, count });
    }

    /// A mutable register with its first value.
    pub fn var(&mut self, init: Reg) -> Var {
        let ty = self.ty(init);
        self.kernel.vars.push(ty);
        let v = Var((self.kernel.vars.len() - 1) as u32);
        self.stmt(Stmt::Set(v, init));
        v
    }

    /// The current value of a mutable register.
    pub fn get(&mut self, v: Var) -> Reg {
        self.push(Inst::Get(v))
    }

    /// Assigns a mutable register.
    pub fn set(&mut self, v: Var, value: Reg) {
        self.stmt(Stmt::Set(v, value));
    }

    /// A loop; the closure builds its body from the loop variable.
    pub fn for_(&mut self, lo: Reg, hi: Reg, step: i64, unroll: Unroll, body: impl FnOnce(&mut Self, Reg)) {
        let iv = self.new_reg(Ty::INDEX);
        let block = self.block(|b| body(b, iv));
        self.stmt(Stmt::For { iv, lo, hi, step, unroll, body: block });
    }

    /// A branch.
    pub fn if_(&mut self, cond: Reg, then: impl FnOnce(&mut Self), els: impl FnOnce(&mut Self)) {
        let then = self.block(then);
        let els = self.block(els);
        self.stmt(Stmt::If { cond, then, els });
    }

    /// Ends the kernel with a status if a condition holds.
    pub fn fail_if(&mut self, cond: Reg, status: Status) {
        self.if_(cond, |b| b.stmt(Stmt::Fail(status)), |_| {});
    }

    /// A prefetch hint.
    pub fn prefetch(&mut self, buf: Buf, index: Reg) {
        self.stmt(Stmt::Prefetch { buf, index });
    }

    /// A matrix register.
    pub fn matrix(&mut self) -> Matrix {
        self.kernel.matrices += 1;
        Matrix(self.kernel.matrices - 1)
    }

    /// Clears a matrix register.
    pub fn matrix_zero(&mut self, m: Matrix) {
        self.stmt(Stmt::Matrix(MatrixInst::Zero(m)));
    }

    /// Loads a matrix register; see [`MatrixInst::Load`].
    pub fn matrix_load(&mut self, matrix: Matrix, buf: Buf, index: Reg, stride: Reg) {
        self.stmt(Stmt::Matrix(MatrixInst::Load { matrix, buf, index, stride }));
    }

    /// Stores a matrix register.
    pub fn matrix_store(&mut self, buf: Buf, index: Reg, stride: Reg, matrix: Matrix) {
        self.stmt(Stmt::Matrix(MatrixInst::Store { matrix, buf, index, stride }));
    }

    /// Adds the product of two matrix registers to a third.
    pub fn matrix_dot(&mut self, dot: MatrixDot, acc: Matrix, a: Matrix, b: Matrix) {
        self.stmt(Stmt::Matrix(MatrixInst::Dot { dot, acc, a, b }));
    }

    fn block(&mut self, f: impl FnOnce(&mut Self)) -> Block {
        self.blocks.push(Vec::new());
        self.seen.push(Vec::new());
        f(self);
        self.seen.pop();
        self.blocks.pop().unwrap_or_default()
    }
}
