//! Scalar bodies: the computation of one element, shared by the tensor IR (`map`) and by lowering to loops.
//!
//! A [`Body`] is a straight line of [`Inst`]s over its arguments; its value is `result`. Bodies compose, which is how
//! element-wise chains fuse ([`BodyBuilder::inline`]).

use crate::types::{DType, Dim};

/// A scalar constant with the bits of its type; see [`Literal::f32`] and friends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Literal {
    /// Element type.
    pub dtype: DType,
    /// The value's bits, zero-extended (integers: two's complement in the width of the type).
    pub bits: u64,
}

impl Literal {
    /// An `f32`.
    pub fn f32(v: f32) -> Self {
        Self { dtype: DType::F32, bits: v.to_bits().into() }
    }

    /// An `i64`.
    pub fn i64(v: i64) -> Self {
        Self { dtype: DType::I64, bits: v as u64 }
    }

    /// A truth value.
    pub fn bool(v: bool) -> Self {
        Self { dtype: DType::Bool, bits: v.into() }
    }

    /// `v` rounded to a float type, or truncated to an integer type (saturating).
    pub fn from_f64(dtype: DType, v: f64) -> Self {
        let bits = match dtype {
            DType::F32 => (v as f32).to_bits().into(),
            DType::F64 => v.to_bits(),
            DType::F16 => half::f16::from_f32(to_odd(v)).to_bits().into(),
            DType::Bf16 => half::bf16::from_f32(to_odd(v)).to_bits().into(),
            DType::Bool => (v != 0.0).into(),
            DType::U8 => (v as u8).into(),
            DType::U16 => (v as u16).into(),
            DType::U32 => (v as u32).into(),
            DType::U64 => v as u64,
            DType::I8 => (v as i8 as u8).into(),
            DType::I16 => (v as i16 as u16).into(),
            DType::I32 => (v as i32 as u32).into(),
            DType::I64 => (v as i64) as u64,
        };
        Self { dtype, bits }
    }

    /// `v` wrapped to an integer type, or converted to a float type.
    pub fn from_i64(dtype: DType, v: i64) -> Self {
        let bits = match dtype {
            DType::U8 | DType::I8 => u64::from(v as u8),
            DType::U16 | DType::I16 => u64::from(v as u16),
            DType::U32 | DType::I32 => u64::from(v as u32),
            DType::U64 | DType::I64 => v as u64,
            DType::Bool => (v != 0).into(),
            DType::F32 => (v as f32).to_bits().into(),
            DType::F64 => (v as f64).to_bits(),
            DType::F16 | DType::Bf16 => return Self::from_f64(dtype, v as f64),
        };
        Self { dtype, bits }
    }

    /// The value as `f64` (64-bit integers round).
    pub fn to_f64(self) -> f64 {
        match self.dtype {
            DType::F32 => f32::from_bits(self.bits as u32).into(),
            DType::F64 => f64::from_bits(self.bits),
            DType::F16 => half::f16::from_bits(self.bits as u16).to_f64(),
            DType::Bf16 => half::bf16::from_bits(self.bits as u16).to_f64(),
            DType::U64 => self.bits as f64,
            _ => self.to_i64() as f64,
        }
    }

    /// The value as `i64`: floats truncate and saturate, `u64` wraps.
    pub fn to_i64(self) -> i64 {
        match self.dtype {
            DType::I8 => (self.bits as i8).into(),
            DType::I16 => (self.bits as i16).into(),
            DType::I32 => (self.bits as i32).into(),
            DType::I64 | DType::U64 | DType::U8 | DType::U16 | DType::U32 | DType::Bool => self.bits as i64,
            _ => self.to_f64() as i64,
        }
    }
}

/// `v` as `f32`, rounded to odd, so that rounding the result to a shorter type is rounding `v` once (Boldo and Melquiond 2008, "Emulation of a FMA and correctly
/// rounded sums: proved algorithms using rounding to odd"). `half` converts `f64` from its upper 32 bits alone.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let bits = near.to_bits();
    if f64::from(near) == v || v.is_nan() || bits & 1 == 1 {
        return near;
    }
    f32::from_bits(if f64::from(near).abs() < v.abs() { bits + 1 } else { bits - 1 })
}

macro_rules! named_enum {
    ($(#[$m:meta])* $name:ident { $($(#[$vm:meta])* $v:ident = $text:literal,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vm])* $v,)* }

        impl $name {
            /// Every variant.
            pub const ALL: &'static [$name] = &[$($name::$v,)*];

            /// The name in the text form.
            pub const fn name(self) -> &'static str {
                match self { $($name::$v => $text,)* }
            }

            /// The variant with a name.
            pub fn from_name(s: &str) -> Option<Self> {
                match s { $($text => Some($name::$v),)* _ => None }
            }
        }
    };
}
pub(crate) use named_enum;

named_enum! {
    /// Operations on one scalar. Float-only unless stated; the result has the operand's type unless stated.
    UnOp {
        /// Negation (ints wrap).
        Neg = "neg",
        /// Absolute value (ints wrap).
        Abs = "abs",
        /// -1, 0 or 1 (also ints); NaN stays NaN.
        Sign = "sign",
        /// e^x.
        Exp = "exp",
        /// Natural logarithm.
        Log = "log",
        /// Square root.
        Sqrt = "sqrt",
        /// 1/x.
        Recip = "recip",
        /// Toward minus infinity.
        Floor = "floor",
        /// Toward plus infinity.
        Ceil = "ceil",
        /// Toward zero.
        Trunc = "trunc",
        /// To nearest, ties to even.
        Round = "round",
        /// Gauss error function.
        Erf = "erf",
        /// Hyperbolic tangent.
        Tanh = "tanh",
        /// 1 / (1 + e^-x), with no overflow for large negative x.
        Sigmoid = "sigmoid",
        /// Sine.
        Sin = "sin",
        /// Cosine.
        Cos = "cos",
        /// Tangent.
        Tan = "tan",
        /// Inverse sine.
        Asin = "asin",
        /// Inverse cosine.
        Acos = "acos",
        /// Inverse tangent.
        Atan = "atan",
        /// Hyperbolic sine.
        Sinh = "sinh",
        /// Hyperbolic cosine.
        Cosh = "cosh",
        /// Inverse hyperbolic sine.
        Asinh = "asinh",
        /// Inverse hyperbolic cosine.
        Acosh = "acosh",
        /// Inverse hyperbolic tangent.
        Atanh = "atanh",
        /// log(1 + x), accurate near zero.
        Log1p = "log1p",
        /// True for NaN; gives `bool`.
        IsNan = "is_nan",
        /// True for plus or minus infinity; gives `bool`.
        IsInf = "is_inf",
        /// Logical not of a `bool`; bitwise complement of an integer.
        Not = "not",
    }
}

named_enum! {
    /// Operations on two scalars of one type. The result has that type; comparisons give `bool`.
    BinOp {
        /// Sum (ints wrap).
        Add = "add",
        /// Difference (ints wrap).
        Sub = "sub",
        /// Product (ints wrap).
        Mul = "mul",
        /// Quotient; ints truncate toward zero, an integer zero divisor is an error; `MIN / -1` wraps.
        Div = "div",
        /// Remainder with the sign of the divisor (Python's `%`); an integer zero divisor is an error.
        Mod = "mod",
        /// Remainder with the sign of the dividend (C's `fmod`).
        Rem = "rem",
        /// Power. Integers: by repeated multiplication, wrapping; a negative exponent gives 0 (or +-1 for bases +-1).
        Pow = "pow",
        /// Minimum; NaN wins.
        Min = "min",
        /// Maximum; NaN wins.
        Max = "max",
        /// Logical or bitwise and.
        And = "and",
        /// Logical or bitwise or.
        Or = "or",
        /// Logical or bitwise exclusive or.
        Xor = "xor",
        /// Shift left; 0 when the amount is the width or more.
        Shl = "shl",
        /// Shift right, logical for unsigned and arithmetic for signed types; 0 (or the sign) when the amount is the width or more.
        Shr = "shr",
        /// Angle of the point (second, first).
        Atan2 = "atan2",
        /// Equal.
        Eq = "eq",
        /// Not equal.
        Ne = "ne",
        /// Less than.
        Lt = "lt",
        /// Less than or equal.
        Le = "le",
        /// Greater than.
        Gt = "gt",
        /// Greater than or equal.
        Ge = "ge",
    }
}

impl BinOp {
    /// True for the comparisons, which give `bool`.
    pub const fn is_compare(self) -> bool {
        matches!(self, BinOp::Eq | BinOp::Ne | BinOp::Lt | BinOp::Le | BinOp::Gt | BinOp::Ge)
    }
}

/// A scalar inside a body: an argument or the result of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ref {
    /// Argument number.
    Arg(u32),
    /// Instruction number.
    Inst(u32),
}

/// One scalar instruction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inst {
    /// A constant.
    Const(Literal),
    /// The value of a dim, `i64`.
    Dim(Dim),
    /// An operation on one scalar.
    Un(UnOp, Ref),
    /// An operation on two scalars of one type.
    Bin(BinOp, Ref, Ref),
    /// `if c { a } else { b }` with `c: bool`.
    Select(Ref, Ref, Ref),
    /// Conversion: float to int truncates (out of range saturates, NaN gives 0), int to int wraps, to `bool` is `!= 0`,
    /// to a float rounds to nearest even.
    Cast(DType, Ref),
}

impl Inst {
    /// The operands.
    pub fn refs(&self) -> smallvec::SmallVec<[Ref; 3]> {
        match self {
            Inst::Const(_) | Inst::Dim(_) => smallvec::smallvec![],
            Inst::Un(_, a) | Inst::Cast(_, a) => smallvec::smallvec![*a],
            Inst::Bin(_, a, b) => smallvec::smallvec![*a, *b],
            Inst::Select(c, a, b) => smallvec::smallvec![*c, *a, *b],
        }
    }

    /// The same instruction with its operands replaced.
    pub fn map_refs(&self, mut f: impl FnMut(Ref) -> Ref) -> Inst {
        match self {
            Inst::Const(_) | Inst::Dim(_) => self.clone(),
            Inst::Un(o, a) => Inst::Un(*o, f(*a)),
            Inst::Cast(d, a) => Inst::Cast(*d, f(*a)),
            Inst::Bin(o, a, b) => Inst::Bin(*o, f(*a), f(*b)),
            Inst::Select(c, a, b) => Inst::Select(f(*c), f(*a), f(*b)),
        }
    }
}

/// Why a body has no type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// An operand that is not defined before its use.
    #[error("instruction {0} uses a scalar that is not defined before it")]
    Undefined(usize),
    /// Operands of different types.
    #[error("`{op}` needs operands of one type, got {a} and {b}")]
    Mismatch {
        /// The operation.
        op: &'static str,
        /// Type of the first operand.
        a: DType,
        /// Type of the second operand.
        b: DType,
    },
    /// An operation on a type that it does not take.
    #[error("`{op}` does not take {dtype}")]
    Operand {
        /// The operation.
        op: &'static str,
        /// The type given.
        dtype: DType,
    },
}

/// The computation of one element from its arguments; see the module docs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Body {
    /// Number of arguments.
    pub n_args: u32,
    /// Instructions; each uses only arguments and earlier instructions.
    pub insts: Vec<Inst>,
    /// The value of the body.
    pub result: Ref,
}

impl Body {
    /// Starts a body with `n_args` arguments.
    pub fn builder(n_args: u32) -> BodyBuilder {
        BodyBuilder { n_args, insts: Vec::new() }
    }

    /// The body of one operation on one argument.
    pub fn un(op: UnOp) -> Self {
        Self { n_args: 1, insts: vec![Inst::Un(op, Ref::Arg(0))], result: Ref::Inst(0) }
    }

    /// The body of one operation on two arguments.
    pub fn bin(op: BinOp) -> Self {
        Self { n_args: 2, insts: vec![Inst::Bin(op, Ref::Arg(0), Ref::Arg(1))], result: Ref::Inst(0) }
    }

    /// `if arg0 { arg1 } else { arg2 }`.
    pub fn select() -> Self {
        Self { n_args: 3, insts: vec![Inst::Select(Ref::Arg(0), Ref::Arg(1), Ref::Arg(2))], result: Ref::Inst(0) }
    }

    /// Conversion of one argument.
    pub fn cast(to: DType) -> Self {
        Self { n_args: 1, insts: vec![Inst::Cast(to, Ref::Arg(0))], result: Ref::Inst(0) }
    }

    /// A constant, no arguments.
    pub fn constant(v: Literal) -> Self {
        Self { n_args: 0, insts: vec![Inst::Const(v)], result: Ref::Inst(0) }
    }

    /// The argument itself.
    pub fn identity() -> Self {
        Self { n_args: 1, insts: vec![], result: Ref::Arg(0) }
    }

    /// Types of the instructions, given those of the arguments.
    ///
    /// # Errors
    /// The first instruction that has no type.
    pub fn infer(&self, args: &[DType]) -> Result<Vec<DType>, BodyError> {
        let mut types: Vec<DType> = Vec::with_capacity(self.insts.len());
        for (i, inst) in self.insts.iter().enumerate() {
            let ty = |r: Ref| {
                match r {
                    Ref::Arg(a) => args.get(a as usize),
                    Ref::Inst(j) => types.get(j as usize),
                }
                .copied()
                .ok_or(BodyError::Undefined(i))
            };
            types.push(match inst {
                Inst::Const(l) => l.dtype,
                Inst::Dim(_) => DType::I64,
                Inst::Cast(to, a) => {
                    ty(*a)?;
                    *to
                }
                Inst::Un(op, a) => un_type(*op, ty(*a)?)?,
                Inst::Bin(op, a, b) => bin_type(*op, ty(*a)?, ty(*b)?)?,
                Inst::Select(c, a, b) => {
                    let (c, a, b) = (ty(*c)?, ty(*a)?, ty(*b)?);
                    if c != DType::Bool {
                        return Err(BodyError::Operand { op: "select", dtype: c });
                    }
                    if a != b {
                        return Err(BodyError::Mismatch { op: "select", a, b });
                    }
                    a
                }
            });
        }
        Ok(types)
    }

    /// Type of the result, given those of the arguments.
    ///
    /// # Errors
    /// As [`Body::infer`].
    pub fn result_type(&self, args: &[DType]) -> Result<DType, BodyError> {
        let types = self.infer(args)?;
        match self.result {
            Ref::Arg(a) => args.get(a as usize),
            Ref::Inst(i) => types.get(i as usize),
        }
        .copied()
        .ok_or(BodyError::Undefined(self.insts.len()))
    }
}

fn un_type(op: UnOp, a: DType) -> Result<DType, BodyError> {
    let bad = Err(BodyError::Operand { op: op.name(), dtype: a });
    match op {
        UnOp::Neg | UnOp::Abs | UnOp::Sign => {
            if a == DType::Bool {
                return bad;
            }
            Ok(a)
        }
        UnOp::Not => {
            if a.is_float() {
                return bad;
            }
            Ok(a)
        }
        UnOp::IsNan | UnOp::IsInf => {
            if a.is_float() {
                Ok(DType::Bool)
            } else {
                bad
            }
        }
        _ => {
            if a.is_float() {
                Ok(a)
            } else {
                bad
            }
        }
    }
}

fn bin_type(op: BinOp, a: DType, b: DType) -> Result<DType, BodyError> {
    if a != b {
        return Err(BodyError::Mismatch { op: op.name(), a, b });
    }
    let ok = match op {
        BinOp::And | BinOp::Or | BinOp::Xor => !a.is_float(),
        BinOp::Shl | BinOp::Shr => a.is_int(),
        BinOp::Atan2 => a.is_float(),
        BinOp::Eq | BinOp::Ne | BinOp::Lt | BinOp::Le | BinOp::Gt | BinOp::Ge | BinOp::Min | BinOp::Max => true,
        _ => a != DType::Bool,
    };
    if !ok {
        return Err(BodyError::Operand { op: op.name(), dtype: a });
    }
    Ok(if op.is_compare() { DType::Bool } else { a })
}

/// Builds a [`Body`]; equal instructions are shared.
#[derive(Clone, Debug)]
pub struct BodyBuilder {
    n_args: u32,
    insts: Vec<Inst>,
}

impl BodyBuilder {
    /// Argument `i`.
    pub fn arg(&self, i: u32) -> Ref {
        Ref::Arg(i)
    }

    /// Appends an instruction, or finds an equal one.
    pub fn push(&mut self, inst: Inst) -> Ref {
        let at = self.insts.iter().position(|i| *i == inst).unwrap_or_else(|| {
            self.insts.push(inst);
            self.insts.len() - 1
        });
        Ref::Inst(at as u32)
    }

    /// A constant.
    pub fn lit(&mut self, v: Literal) -> Ref {
        self.push(Inst::Const(v))
    }

    /// A constant of a type, from an `f64`.
    pub fn num(&mut self, dtype: DType, v: f64) -> Ref {
        self.lit(Literal::from_f64(dtype, v))
    }

    /// An operation on one scalar.
    pub fn un(&mut self, op: UnOp, a: Ref) -> Ref {
        self.push(Inst::Un(op, a))
    }

    /// An operation on two scalars.
    pub fn bin(&mut self, op: BinOp, a: Ref, b: Ref) -> Ref {
        self.push(Inst::Bin(op, a, b))
    }

    /// A selection.
    pub fn select(&mut self, c: Ref, a: Ref, b: Ref) -> Ref {
        self.push(Inst::Select(c, a, b))
    }

    /// A conversion.
    pub fn cast(&mut self, to: DType, a: Ref) -> Ref {
        self.push(Inst::Cast(to, a))
    }

    /// Copies another body in, its arguments replaced by `args`; gives its result.
    pub fn inline(&mut self, body: &Body, args: &[Ref]) -> Ref {
        let mut map: Vec<Ref> = Vec::with_capacity(body.insts.len());
        for inst in &body.insts {
            let new = inst.map_refs(|r| match r {
                Ref::Arg(a) => args[a as usize],
                Ref::Inst(i) => map[i as usize],
            });
            map.push(self.push(new));
        }
        match body.result {
            Ref::Arg(a) => args[a as usize],
            Ref::Inst(i) => map[i as usize],
        }
    }

    /// Ends the body.
    pub fn finish(self, result: Ref) -> Body {
        Body { n_args: self.n_args, insts: self.insts, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_floats_are_rounded_once() {
        let bf16 = |v: f64| Literal::from_f64(DType::Bf16, v).to_f64();
        let f16 = |v: f64| Literal::from_f64(DType::F16, v).to_f64();
        let ulp = [2f64.powi(-7), 2f64.powi(-10)];
        for (round, ulp) in [(&bf16 as &dyn Fn(f64) -> f64, ulp[0]), (&f16, ulp[1])] {
            for sign in [1.0, -1.0] {
                // A tie goes to even; the least more than a tie goes up, however far behind it stands.
                assert_eq!(round(sign * (1.0 + ulp / 2.0)), sign);
                for more in [2f64.powi(-21), 2f64.powi(-23), 2f64.powi(-40), 2f64.powi(-52)] {
                    assert_eq!(round(sign * (1.0 + ulp / 2.0 + more)), sign * (1.0 + ulp), "{more}");
                    assert_eq!(round(sign * (1.0 + 1.5 * ulp - more)), sign * (1.0 + ulp), "{more}");
                }
                assert_eq!(round(sign * 1e300), sign * f64::INFINITY);
                assert_eq!(round(sign * 1e-300), 0.0);
            }
            assert!(round(f64::NAN).is_nan() && round(f64::INFINITY) == f64::INFINITY);
        }
    }
}
