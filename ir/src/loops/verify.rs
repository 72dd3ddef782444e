//! The verifier of kernels: every register is assigned once and read where it is in scope, and operands have the types that each
//! instruction asks for.

use super::inst::{Inst, MatrixInst, Packs, TargetInst, Ty};
use super::kernel::{Access, Block, Buf, Kernel, Matrix, Reg, Space, Stmt, Var};
use crate::scalar::{BinOp, UnOp};
use crate::types::DType;

/// Checks a kernel.
///
/// # Errors
/// Everything that is wrong, in order of the statements.
pub fn verify(k: &Kernel) -> Result<(), Vec<String>> {
    let mut v = Verifier { k, regs: vec![false; k.regs.len()], once: vec![false; k.regs.len()], vars: vec![false; k.vars.len()] };
    let mut problems = Vec::new();
    if k.block == Some(0) {
        problems.push("a block has no threads".into());
    }
    if k.block.is_none() && k.locals.iter().any(|l| l.space == Space::Shared) {
        problems.push("host code has no shared memory".into());
    }
    if k.regs.iter().chain(&k.vars).any(|ty| ty.lanes == 0) {
        problems.push("a register has no lanes".into());
    }
    if k.matrices > Matrix::COUNT {
        problems.push(format!("{} matrix registers of {}", k.matrices, Matrix::COUNT));
    }
    v.block(&k.body, &mut problems);
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

struct Verifier<'a> {
    k: &'a Kernel,
    /// In scope.
    regs: Vec<bool>,
    /// Assigned anywhere.
    once: Vec<bool>,
    /// Assigned in this or an enclosing block.
    vars: Vec<bool>,
}

type Check<T = ()> = Result<T, String>;

fn ensure(ok: bool, what: impl FnOnce() -> String) -> Check {
    if ok { Ok(()) } else { Err(what()) }
}

impl Verifier<'_> {
    /// What a block defines ends with it.
    fn block(&mut self, block: &Block, problems: &mut Vec<String>) {
        let (regs, vars) = (self.regs.clone(), self.vars.clone());
        for s in block {
            if let Err(e) = self.stmt(s, problems) {
                problems.push(e);
            }
        }
        (self.regs, self.vars) = (regs, vars);
    }

    fn stmt(&mut self, s: &Stmt, problems: &mut Vec<String>) -> Check {
        match s {
            Stmt::Let(r, inst) => {
                let ty = self.inst(inst).map_err(|e| format!("{r} = {inst}: {e}"));
                self.define(*r)?;
                let (ty, stated) = (ty?, self.k.reg_ty(*r));
                ensure(ty == stated, || format!("{r} = {inst}: the register is {stated}, the value {ty}"))
            }
            Stmt::Set(v, r) => {
                let (to, from) = (self.var_ty(*v)?, self.ty(*r)?);
                self.vars[v.0 as usize] = true;
                ensure(to == from, || format!("set {v} {r}: {to} from {from}"))
            }
            Stmt::Store { buf, index, value, count } => {
                let (ty, d) = (self.ty(*value)?, self.buf(*buf, Access::Read)?);
                ensure(ty.dtype == d, || format!("store {buf} {value}: {ty} in a buffer of {d}"))?;
                self.index(*index)?;
                count.map_or(Ok(()), |c| self.index(c))
            }
            Stmt::For { iv, lo, hi, step, unroll: _, body } => {
                self.index(*lo)?;
                self.index(*hi)?;
                ensure(*step > 0, || format!("for {iv}: step {step}"))?;
                self.define(*iv)?;
                ensure(self.k.reg_ty(*iv) == Ty::INDEX, || format!("for {iv}: not an index"))?;
                self.block(body, problems);
                self.regs[iv.0 as usize] = false;
                Ok(())
            }
            Stmt::If { cond, then, els } => {
                let ty = self.ty(*cond)?;
                ensure(ty == Ty::BOOL, || format!("if {cond}: a condition of {ty}"))?;
                self.block(then, problems);
                self.block(els, problems);
                Ok(())
            }
            Stmt::Fail(_) => Ok(()),
            Stmt::Barrier => ensure(self.k.block.is_some(), || "host code has no barrier".into()),
            Stmt::Matrix(inst) => self.matrix(inst).map_err(|e| format!("{inst}: {e}")),
            Stmt::Prefetch { buf, index } => {
                self.buf(*buf, Access::ReadWrite)?;
                self.index(*index)
            }
        }
    }

    fn matrix(&self, inst: &MatrixInst) -> Check {
        let known = |m: Matrix| ensure(m.0 < self.k.matrices, || format!("there is no {m}"));
        ensure(self.k.block.is_none(), || "device code has no matrix registers".into())?;
        let (matrix, buf, index, stride, not) = match *inst {
            MatrixInst::Zero(m) => return known(m),
            MatrixInst::Dot { acc, a, b, .. } => {
                ensure(acc != a && acc != b && a != b, || "the registers must be three".into())?;
                return [acc, a, b].into_iter().try_for_each(known);
            }
            MatrixInst::Load { matrix, buf, index, stride } => (matrix, buf, index, stride, Access::Write),
            MatrixInst::Store { matrix, buf, index, stride } => (matrix, buf, index, stride, Access::Read),
        };
        known(matrix)?;
        self.index(index)?;
        self.index(stride)?;
        let d = self.buf(buf, not)?;
        ensure(d != DType::Bool, || format!("rows of {d}"))
    }

    fn define(&mut self, r: Reg) -> Check {
        let i = r.0 as usize;
        ensure(i < self.regs.len(), || format!("{r} has no type"))?;
        ensure(!self.once[i], || format!("{r} is assigned twice"))?;
        (self.once[i], self.regs[i]) = (true, true);
        Ok(())
    }

    fn ty(&self, r: Reg) -> Check<Ty> {
        ensure(self.regs.get(r.0 as usize) == Some(&true), || format!("{r} is not in scope"))?;
        Ok(self.k.reg_ty(r))
    }

    fn var_ty(&self, v: Var) -> Check<Ty> {
        self.k.vars.get(v.0 as usize).copied().ok_or_else(|| format!("{v} has no type"))
    }

    fn index(&self, r: Reg) -> Check {
        let ty = self.ty(r)?;
        ensure(ty == Ty::INDEX, || format!("{r} is {ty}, not an index"))
    }

    /// The element type of a buffer that may be used in another way than `not`.
    fn buf(&self, b: Buf, not: Access) -> Check<DType> {
        let found = match b {
            Buf::Param(i) => self.k.bufs.get(i as usize).map(|p| (p.dtype, p.access)),
            Buf::Local(i) => self.k.locals.get(i as usize).map(|l| (l.dtype, Access::ReadWrite)),
        };
        let (d, access) = found.ok_or_else(|| format!("there is no buffer {b}"))?;
        ensure(access != not || not == Access::ReadWrite, || format!("{b} is declared {access:?}"))?;
        Ok(d)
    }

    /// The type of an instruction's result.
    fn inst(&self, inst: &Inst) -> Check<Ty> {
        let same = |a: &Reg, b: &Reg| {
            let (x, y) = (self.ty(*a)?, self.ty(*b)?);
            ensure(x == y, || format!("operands of {x} and {y}"))?;
            Ok::<Ty, String>(x)
        };
        match inst {
            Inst::Const(l) => Ok(Ty::scalar(l.dtype)),
            Inst::Dim(d) => {
                let mut used = Vec::new();
                d.symbols(&mut used);
                let unknown = used.iter().find(|s| !self.k.syms.contains(s));
                unknown.map_or(Ok(Ty::INDEX), |s| Err(format!("`{}` is not a symbol of the kernel", s.name())))
            }
            Inst::Lo | Inst::Hi => Ok(Ty::INDEX),
            Inst::Thread => ensure(self.k.block.is_some(), || "host code has no threads".into()).map(|()| Ty::INDEX),
            Inst::Get(v) => {
                let ty = self.var_ty(*v)?;
                ensure(self.vars[v.0 as usize], || format!("{v} is read before it is set"))?;
                Ok(ty)
            }
            Inst::Load { buf, index, ty, count } => {
                let d = self.buf(*buf, Access::Write)?;
                self.index(*index)?;
                count.map_or(Ok(()), |c| self.index(c))?;
                ensure(ty.dtype == d && ty.lanes > 0, || format!("{ty} from a buffer of {d}"))?;
                Ok(*ty)
            }
            Inst::Un(op, a) => {
                let ty = self.ty(*a)?;
                Ok(if matches!(op, UnOp::IsNan | UnOp::IsInf) { ty.with_dtype(DType::Bool) } else { ty })
            }
            Inst::Bin(op, a, b) => {
                let ty = same(a, b)?;
                let bits = matches!(op, BinOp::And | BinOp::Or | BinOp::Xor | BinOp::Shl | BinOp::Shr);
                ensure(!(bits && ty.dtype.is_float()), || format!("bits of {ty}"))?;
                Ok(if op.is_compare() { ty.with_dtype(DType::Bool) } else { ty })
            }
            Inst::Fma(a, b, c) => {
                same(a, b)?;
                let ty = same(b, c)?;
                ensure(ty.dtype.is_float(), || format!("on {ty}"))?;
                Ok(ty)
            }
            Inst::Select(c, a, b) => {
                let (tc, ty) = (self.ty(*c)?, same(a, b)?);
                ensure(tc.dtype == DType::Bool && (tc.lanes == 1 || tc.lanes == ty.lanes), || format!("condition {tc}"))?;
                Ok(ty)
            }
            Inst::Cast(d, a) => Ok(self.ty(*a)?.with_dtype(*d)),
            Inst::Bitcast(d, a) => {
                let ty = self.ty(*a)?;
                ensure(d.bits() == ty.dtype.bits(), || format!("{ty} to {d}"))?;
                Ok(ty.with_dtype(*d))
            }
            Inst::Splat(n, a) => {
                let ty = self.ty(*a)?;
                ensure(ty.lanes == 1 && *n > 0, || format!("of {ty}"))?;
                Ok(Ty { lanes: *n, ..ty })
            }
            Inst::Lanes(ty) => {
                ensure(matches!(ty.dtype, DType::I64 | DType::I32), || format!("of {ty}"))?;
                Ok(*ty)
            }
            Inst::Extract(a, i) => {
                let ty = self.ty(*a)?;
                ensure(*i < ty.lanes, || format!("of {ty}"))?;
                Ok(Ty { lanes: 1, ..ty })
            }
            Inst::Insert(a, i, x) => {
                let (ty, one) = (self.ty(*a)?, self.ty(*x)?);
                ensure(*i < ty.lanes && one == Ty { lanes: 1, ..ty }, || format!("of {one} into {ty}"))?;
                Ok(ty)
            }
            Inst::Shuffle(a, b, lanes) => {
                let ty = same(a, b)?;
                ensure(!lanes.is_empty() && lanes.iter().all(|l| *l < 2 * ty.lanes), || "a lane that is not there".into())?;
                Ok(Ty { lanes: lanes.len() as u16, ..ty })
            }
            Inst::Reduce(_, a) => {
                let ty = self.ty(*a)?;
                ensure(ty.lanes.is_power_of_two(), || format!("of {ty}"))?;
                Ok(Ty { lanes: 1, ..ty })
            }
            Inst::Target(t, args) => {
                let types = args.iter().map(|r| self.ty(*r)).collect::<Check<Vec<Ty>>>()?;
                target(*t, &types).ok_or_else(|| format!("operands {types:?}"))
            }
        }
    }
}

/// The type of what a target instruction gives; `None` if it does not take such operands.
pub(super) fn target(t: TargetInst, types: &[Ty]) -> Option<Ty> {
    let acc = *types.first()?;
    let (d, a, b, per_lane) = match t {
        TargetInst::VCvtNePs2Bf16 => {
            return (acc.dtype == DType::F32 && types.len() == 1).then_some(acc.with_dtype(DType::Bf16));
        }
        TargetInst::VCvtPs2Dq => {
            return (acc.dtype == DType::F32 && types.len() == 1).then_some(acc.with_dtype(DType::I32));
        }
        TargetInst::VPackSsDw | TargetInst::VPackUsWb => {
            let Packs { from, to, .. } = t.packs()?;
            let whole = acc.dtype == from && usize::from(acc.lanes) * from.size_bytes() % 16 == 0;
            return (whole && types[1..] == [acc]).then_some(Ty::vector(to, 2 * acc.lanes));
        }
        TargetInst::VPermI2B => (DType::U8, DType::U8, DType::U8, 1),
        TargetInst::VpDpBusd => (DType::I32, DType::U8, DType::I8, 4),
        TargetInst::VpDpWssd => (DType::I32, DType::I16, DType::I16, 2),
        TargetInst::VDpBf16Ps => (DType::F32, DType::Bf16, DType::Bf16, 2),
    };
    let n = acc.lanes.checked_mul(per_lane)?;
    (acc.dtype == d && types[1..] == [Ty::vector(a, n), Ty::vector(b, n)]).then_some(acc)
}
