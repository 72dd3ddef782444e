//! Types and instructions of the loop IR.

use std::fmt;

use super::kernel::{Buf, Matrix, Reg, Var};
use crate::scalar::{BinOp, Literal, UnOp, named_enum};
use crate::types::{DType, Dim};

/// The type of a register: a scalar (`lanes == 1`) or a short vector. Indices are `i64`; `bool` is one bit per lane in registers and
/// one byte in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ty {
    /// Element type.
    pub dtype: DType,
    /// Number of lanes.
    pub lanes: u16,
}

impl Ty {
    /// The type of indices and loop variables.
    pub const INDEX: Ty = Ty::scalar(DType::I64);
    /// The type of conditions.
    pub const BOOL: Ty = Ty::scalar(DType::Bool);
    /// A single float.
    pub const F32: Ty = Ty::scalar(DType::F32);

    /// A scalar type.
    pub const fn scalar(dtype: DType) -> Self {
        Self { dtype, lanes: 1 }
    }

    /// A vector type.
    pub const fn vector(dtype: DType, lanes: u16) -> Self {
        Self { dtype, lanes }
    }

    /// The same shape with another element type.
    pub const fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, lanes: self.lanes }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes == 1 { write!(f, "{}", self.dtype) } else { write!(f, "{}x{}", self.dtype, self.lanes) }
    }
}

impl fmt::Debug for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

named_enum! {
    /// Folds the lanes of a vector in a fixed tree: lane `i` with lane `i + n/2`, halving.
    ReduceOp {
        /// Sum.
        Add = "add",
        /// Product.
        Mul = "mul",
        /// Minimum, NaN wins.
        Min = "min",
        /// Maximum, NaN wins.
        Max = "max",
    }
}

named_enum! {
    /// Target instructions. Each has a meaning in scalars, which every backend without the instruction must follow.
    TargetInst {
        /// `vpdpbusd(acc: i32xN, a: u8x4N, b: i8x4N)`: `acc[i] + sum over j in 0..4 of a[4i+j]*b[4i+j]`, wrapping.
        VpDpBusd = "vpdpbusd",
        /// `vpdpwssd(acc: i32xN, a: i16x2N, b: i16x2N)`: `acc[i] + a[2i]*b[2i] + a[2i+1]*b[2i+1]`, wrapping.
        VpDpWssd = "vpdpwssd",
        /// `vdpbf16ps(acc: f32xN, a: bf16x2N, b: bf16x2N)`: `acc[i] + a[2i+1]*b[2i+1]`, and to that `+ a[2i]*b[2i]`, each with one rounding to nearest
        /// even. Whether a denormal (operand, product or sum) counts as zero is open, so results may differ by `2^-126 * (4 + sum of |a| + sum of |b|)`.
        VDpBf16Ps = "vdpbf16ps",
        /// `vcvtneps2bf16(x: f32xN)`: each element as `bf16`, rounded to nearest even. Whether a denormal counts as zero is open.
        VCvtNePs2Bf16 = "vcvtneps2bf16",
        /// `vpermi2b(index: u8xN, a: u8xN, b: u8xN)`: element `index[i] mod 2N` of `a` followed by `b`.
        VPermI2B = "vpermi2b",
        /// `vcvtps2dq(x: f32xN)`: each element rounded to nearest even as `i32`; the least `i32` for NaN and where it does not fit.
        VCvtPs2Dq = "vcvtps2dq",
        /// `vpackssdw(a: i32xN, b: i32xN)`: an `i16x2N` of saturated elements, in the order of [`TargetInst::packed_lanes`].
        VPackSsDw = "vpackssdw",
        /// `vpackuswb(a: i16xN, b: i16xN)`: a `u8x2N` of saturated elements, in the order of [`TargetInst::packed_lanes`].
        VPackUsWb = "vpackuswb",
    }
}

/// What an instruction does that packs two vectors.
#[derive(Clone, Copy, Debug)]
pub struct Packs {
    /// Element type of the operands.
    pub from: DType,
    /// Element type of the result.
    pub to: DType,
    /// Its least and its largest number: those beyond become these.
    pub range: [i64; 2],
}

impl Packs {
    /// What `vpackssdw` does.
    pub const WORDS: Packs = Packs { from: DType::I32, to: DType::I16, range: [i16::MIN as i64, i16::MAX as i64] };
    /// What `vpackuswb` does.
    pub const BYTES: Packs = Packs { from: DType::I16, to: DType::U8, range: [0, u8::MAX as i64] };
}

impl TargetInst {
    /// What it packs, if it does.
    pub const fn packs(self) -> Option<Packs> {
        match self {
            TargetInst::VPackSsDw => Some(Packs::WORDS),
            TargetInst::VPackUsWb => Some(Packs::BYTES),
            _ => None,
        }
    }

    /// The lanes of two vectors of type `ty`, the second behind the first, as packing puts them: of each 128 bits first what the one holds, then the other.
    pub fn packed_lanes(ty: Ty) -> Vec<u16> {
        let n = (16 / ty.dtype.size_bytes()) as u16;
        (0..2 * ty.lanes).map(|i| i / (2 * n) * n + i % n + if i % (2 * n) < n { 0 } else { ty.lanes }).collect()
    }
}

named_enum! {
    /// Products of matrix registers: `acc[i, j] += sum over k of a[i, k] * b[k, j]`, `acc` of 16 by 16 numbers of 32 bits. The rows of `b` stand in groups of
    /// 32 bits: row `g` of its register holds for column `j` the group `g` of `k`.
    MatrixDot {
        /// `a: u8[16, 64]`, `b: i8[64, 16]`, `acc: i32`, wrapping.
        Bytes = "tdpbusd",
        /// `a: bf16[16, 32]`, `b: bf16[32, 16]`, `acc: f32`. The even elements of `k` are summed in ascending order from zero, the odd ones likewise, one rounding to
        /// nearest even per element; the sum of both is rounded, and added with one more rounding. Denormals count as zero.
        Bf16 = "tdpbf16ps",
    }
}

/// An instruction on matrix registers. A register has [`MatrixInst::ROWS`] rows of [`MatrixInst::ROW_BYTES`] bytes, whose type follows from who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixInst {
    /// All bits zero.
    Zero(Matrix),
    /// Row `r` is what lies from element `index + r * stride` on.
    Load {
        /// To where.
        matrix: Matrix,
        /// From where.
        buf: Buf,
        /// First element of the first row.
        index: Reg,
        /// Elements from row to row.
        stride: Reg,
    },
    /// The reverse of `Load`.
    Store {
        /// From where.
        matrix: Matrix,
        /// To where.
        buf: Buf,
        /// First element of the first row.
        index: Reg,
        /// Elements from row to row.
        stride: Reg,
    },
    /// Adds a product of two registers to a third.
    Dot {
        /// Which one.
        dot: MatrixDot,
        /// The sums.
        acc: Matrix,
        /// The left operand.
        a: Matrix,
        /// The right operand.
        b: Matrix,
    },
}

impl MatrixInst {
    /// Rows of a register.
    pub const ROWS: usize = 16;
    /// Bytes of a row.
    pub const ROW_BYTES: usize = 64;
}

impl fmt::Display for MatrixInst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MatrixInst::Zero(m) => write!(f, "zero {m}"),
            MatrixInst::Load { matrix, buf, index, stride } => write!(f, "load {matrix} {buf}[{index}] stride {stride}"),
            MatrixInst::Store { matrix, buf, index, stride } => write!(f, "store {buf}[{index}] {matrix} stride {stride}"),
            MatrixInst::Dot { dot, acc, a, b } => write!(f, "{} {acc} {a} {b}", dot.name()),
        }
    }
}

/// An instruction; its operands are registers. Types are checked by the verifier: operands of one operation have one type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inst {
    /// A scalar constant.
    Const(Literal),
    /// The value of a dim expression over the kernel's symbols, `i64`.
    Dim(Dim),
    /// First unit of this call's share of the parallel extent, `i64`.
    Lo,
    /// End of this call's share, `i64`.
    Hi,
    /// Number of this thread in its block, `i64`.
    Thread,
    /// The current value of a mutable register.
    Get(Var),
    /// Loads `ty.lanes` neighbouring elements from element `index` (`i64`). With `count` (`i64`) only the first `count` lanes are
    /// read (0 up to the number of lanes; more means all), the others are zero.
    Load {
        /// From where.
        buf: Buf,
        /// First element.
        index: Reg,
        /// Type of the result.
        ty: Ty,
        /// Active lanes.
        count: Option<Reg>,
    },
    /// Operation on one operand; see [`UnOp`].
    Un(UnOp, Reg),
    /// Operation on two operands; see [`BinOp`]. Integer `div`, `mod`, `rem` by zero are undefined here: lowering guards them.
    Bin(BinOp, Reg, Reg),
    /// `a * b + c` with one rounding.
    Fma(Reg, Reg, Reg),
    /// `if c { a } else { b }` per lane; a scalar condition with vector operands chooses all lanes.
    Select(Reg, Reg, Reg),
    /// Conversion as [`crate::scalar::Inst::Cast`].
    Cast(DType, Reg),
    /// The same bits under another element type of the same width.
    Bitcast(DType, Reg),
    /// A vector of equal lanes.
    Splat(u16, Reg),
    /// The vector `0, 1, 2, ..` of `i64` or `i32`.
    Lanes(Ty),
    /// One lane (constant position).
    Extract(Reg, u16),
    /// A vector with one lane replaced.
    Insert(Reg, u16, Reg),
    /// Lanes picked from the concatenation of two vectors of one type.
    Shuffle(Reg, Reg, Vec<u16>),
    /// Folds the lanes to a scalar.
    Reduce(ReduceOp, Reg),
    /// A target instruction.
    Target(TargetInst, Vec<Reg>),
}

impl Inst {
    /// The registers that it reads.
    pub fn operands_mut(&mut self) -> Vec<&mut Reg> {
        match self {
            Inst::Const(_) | Inst::Dim(_) | Inst::Lo | Inst::Hi | Inst::Thread | Inst::Get(_) | Inst::Lanes(_) => Vec::new(),
            Inst::Load { index, count, .. } => std::iter::once(index).chain(count).collect(),
            Inst::Un(_, a)
            | Inst::Cast(_, a)
            | Inst::Bitcast(_, a)
            | Inst::Splat(_, a)
            | Inst::Extract(a, _)
            | Inst::Reduce(_, a) => vec![a],
            Inst::Bin(_, a, b) | Inst::Insert(a, _, b) | Inst::Shuffle(a, b, _) => vec![a, b],
            Inst::Fma(a, b, c) | Inst::Select(a, b, c) => vec![a, b, c],
            Inst::Target(_, args) => args.iter_mut().collect(),
        }
    }
}
