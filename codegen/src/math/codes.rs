//! Quantisation to bytes and back: `saturate(round(x) + zero)`, and `that - zero` as a float.
//!
//! A whole number between whole bounds stays there when it is rounded, so clamping may come first: then adding `1.5 * 2^23` rounds `x` to nearest
//! even and leaves the code in the low bits, and decoding what was just coded needs no conversion to integers and back.

use transc_ir::loops::{Block, Inst, Reg};
use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::types::DType;

use super::{Emit, Expander, ROUND};

/// Zero points of bytes are smaller: sums with [`ROUND`] stay exact.
const MAX_ZERO: f32 = 256.0;

/// A float that becomes a code: `saturate(round(x) + zero)`.
struct Coded {
    x: Reg,
    zero: f32,
    to: DType,
}

impl Expander<'_> {
    /// A conversion that makes a code, or reads one that was just made.
    pub(super) fn code(&mut self, to: DType, v: Reg, out: &mut Block) -> Option<Reg> {
        let ty = self.regs[v.0 as usize];
        if let Some(c) = self.coded(to, v) {
            let mut e = Emit { regs: self.regs, out, ty };
            let clamped = e.clamp_code(&c);
            let magic = e.num(ROUND);
            let whole = e.bin(BinOp::Add, clamped, magic);
            let mut bits = e.bits(DType::I32, whole);
            if c.zero != 0.0 {
                let zero = e.int(c.zero as i32);
                bits = e.bin(BinOp::Add, bits, zero);
            }
            return Some(e.push(ty.with_dtype(to), Inst::Cast(to, bits)));
        }
        if to != DType::F32 || ty.dtype != DType::I32 {
            return None;
        }
        let (wide, minus) = match self.defs.get(&v)? {
            Inst::Bin(BinOp::Sub, wide, zero) => (*wide, self.int_constant(*zero)?),
            _ => (v, 0),
        };
        let Inst::Cast(DType::I32, code) = *self.defs.get(&wide)? else { return None };
        let Inst::Cast(byte, v) = *self.defs.get(&code)? else { return None };
        let c = self.coded(byte, v).filter(|_| minus.abs() < MAX_ZERO as i32)?;
        let mut e = Emit { regs: self.regs, out, ty: ty.with_dtype(DType::F32) };
        let clamped = e.clamp_code(&c);
        let magic = e.num(ROUND);
        let whole = e.bin(BinOp::Add, clamped, magic);
        // A difference of zero is positive, as that of the integers is.
        let magic = e.num(ROUND - c.zero + minus as f32);
        Some(e.bin(BinOp::Sub, whole, magic))
    }

    /// What a conversion of a float to bytes codes.
    fn coded(&self, to: DType, v: Reg) -> Option<Coded> {
        if !matches!(to, DType::U8 | DType::I8) || self.regs[v.0 as usize].dtype != DType::F32 {
            return None;
        }
        let rounded = |r: Reg| match self.defs.get(&r) {
            Some(Inst::Un(UnOp::Round, x)) => Some(*x),
            _ => None,
        };
        let (x, zero) = match self.defs.get(&v)? {
            Inst::Bin(BinOp::Add, r, zero) => (rounded(*r)?, *self.constants.get(zero)?),
            _ => (rounded(v)?, 0.0),
        };
        (zero.abs() < MAX_ZERO && zero.fract() == 0.0).then_some(Coded { x, zero, to })
    }

    /// The integer that all lanes of a register hold.
    fn int_constant(&self, r: Reg) -> Option<i32> {
        match self.defs.get(&r)? {
            Inst::Const(l) if l.dtype == DType::I32 => Some(l.bits as i32),
            Inst::Splat(_, r) => self.int_constant(*r),
            _ => None,
        }
    }
}

impl Emit<'_> {
    /// `x` between the bounds that its code has, less the zero point. NaN has the code 0.
    fn clamp_code(&mut self, c: &Coded) -> Reg {
        let (least, most) = if c.to == DType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
        let (bottom, top) = (self.num(least - c.zero), self.num(most - c.zero));
        // Comparisons are false for NaN.
        let above = self.bin(BinOp::Gt, c.x, bottom);
        let x = self.select(above, c.x, bottom);
        let below = self.bin(BinOp::Lt, x, top);
        let x = self.select(below, x, top);
        if c.to != DType::I8 {
            return x;
        }
        let (number, none) = (self.bin(BinOp::Eq, c.x, c.x), self.num(-c.zero));
        self.select(number, x, none)
    }
}
