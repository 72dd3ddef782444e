//! Expansion of `f32` exp, tanh, erf, sigmoid, log and small whole powers into loop-IR arithmetic, so that every backend vectorises them
//! and gives the same bits.
//!
//! Polynomials are minimax fits made for these ranges. Bounds over all finite inputs: exp, tanh and log 4 ulp; sigmoid 4 ulp above `-87`;
//! erf 8 ulp; powers one rounding per multiplication. Infinities and NaN behave as in C's library; results of exp below the smallest normal
//! number are rounded as denormals, but those of a softmax are zero (`softmax_exp`). Divisions by a constant become multiplications that round the same (`quotient`), and codes are
//! clamped before they are rounded (`codes`); neither changes a bit.
//!
//! Targets with no library of functions get all others from `full`.

mod codes;
mod full;
mod quotient;

use std::collections::HashMap;

use transc_ir::loops::{Block, Inst, Kernel, KernelBuilder, Reg, Stmt, Ty};
use transc_ir::scalar::{BinOp, Literal, UnOp};
use transc_ir::types::DType;

use quotient::Reciprocal;

/// Replaces the transcendental operations on `f32` that this module knows; everything else stays.
pub fn expand(kernel: &mut Kernel) {
    let body = std::mem::take(&mut kernel.body);
    kernel.body = Expander::new(&mut kernel.regs, false).block(body);
}

/// Replaces every operation that a target with no library of functions does not have.
///
/// # Errors
/// The first function that is not known for its type.
pub fn expand_all(kernel: &mut Kernel) -> Result<(), String> {
    let body = std::mem::take(&mut kernel.body);
    let mut e = Expander::new(&mut kernel.regs, true);
    kernel.body = e.block(body);
    e.missing.map_or(Ok(()), Err)
}

/// `e^x` of a logit less the largest one of its row, so never above 1: within 4 ulp, and zero below `e^-87`. A processor that stumbles over denormals meets none,
/// however many logits are hidden; and one factor `2^n` is enough.
pub(crate) fn softmax_exp(kb: &mut KernelBuilder, x: Reg) -> Reg {
    let ty = kb.ty(x);
    if ty.dtype != DType::F32 {
        return kb.un(UnOp::Exp, x);
    }
    kb.append(|regs, out| Emit { regs, out, ty }.softmax_exp(x))
}

/// True for the operations that [`expand`] replaces.
pub(crate) fn known(op: UnOp) -> bool {
    matches!(op, UnOp::Exp | UnOp::Tanh | UnOp::Erf | UnOp::Sigmoid | UnOp::Log)
}

/// Largest power that becomes multiplications.
const MAX_POWER: u32 = 4;

/// True for the operations that a processor has itself.
fn basic(op: UnOp) -> bool {
    use UnOp as U;
    matches!(
        op,
        U::Neg | U::Abs | U::Sign | U::Sqrt | U::Recip | U::Floor | U::Ceil | U::Trunc | U::Round | U::IsNan | U::IsInf | U::Not
    )
}

struct Expander<'a> {
    regs: &'a mut Vec<Ty>,
    /// Registers that hold one `f32` constant in all lanes.
    constants: HashMap<Reg, f32>,
    /// What came before.
    defs: HashMap<Reg, Inst>,
    all: bool,
    missing: Option<String>,
}

impl<'a> Expander<'a> {
    fn new(regs: &'a mut Vec<Ty>, all: bool) -> Self {
        Self { regs, constants: HashMap::new(), defs: HashMap::new(), all, missing: None }
    }

    fn note(&mut self, dst: Reg, inst: &Inst) {
        self.defs.insert(dst, inst.clone());
        let value = match inst {
            Inst::Const(l) if l.dtype == DType::F32 => Some(f32::from_bits(l.bits as u32)),
            Inst::Splat(_, r) => self.constants.get(r).copied(),
            _ => None,
        };
        self.constants.extend(value.map(|v| (dst, v)));
    }

    /// The exponent of a power that becomes multiplications. The first power stays: an expansion must end in a new register.
    fn whole_power(&self, x: Reg, exponent: Reg) -> Option<u32> {
        let n = *self.constants.get(&exponent).filter(|_| self.regs[x.0 as usize].dtype == DType::F32)?;
        (2..=MAX_POWER).find(|k| n == *k as f32)
    }

    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.len());
        for stmt in block {
            match stmt {
                Stmt::Let(dst, inst) => {
                    self.note(dst, &inst);
                    match self.expansion(&inst, &mut out) {
                        Some(last) => rename_last(&mut out, last, dst),
                        None => out.push(Stmt::Let(dst, inst)),
                    }
                }
                other => out.push(other.map_blocks(|b| self.block(b))),
            }
        }
        out
    }

    /// The last instruction of what takes the place of one, if anything does.
    fn expansion(&mut self, inst: &Inst, out: &mut Block) -> Option<Reg> {
        match *inst {
            Inst::Cast(to, x) => self.code(to, x, out),
            Inst::Un(op, x) => self.un(op, x, out),
            Inst::Bin(op, x, y) => self.bin(op, x, y, out),
            _ => None,
        }
    }
}

impl Expander<'_> {
    fn un(&mut self, op: UnOp, x: Reg, out: &mut Block) -> Option<Reg> {
        let ty = self.regs[x.0 as usize];
        match ty.dtype {
            DType::F32 if known(op) => {
                let mut e = Emit { regs: self.regs, out, ty };
                Some(match op {
                    UnOp::Exp => e.exp(x),
                    UnOp::Tanh => e.tanh(x),
                    UnOp::Erf => e.erf(x),
                    UnOp::Sigmoid => e.sigmoid(x),
                    _ => e.log(x),
                })
            }
            d if !self.all || !d.is_float() || basic(op) => None,
            DType::F16 | DType::Bf16 => {
                let x = self.cast(DType::F32, x, out);
                let y = self.un(op, x, out)?;
                Some(self.cast(ty.dtype, y, out))
            }
            _ => self.wide(op.name(), &[x], out, |w, x| w.function(op, x[0])),
        }
    }

    fn bin(&mut self, op: BinOp, x: Reg, y: Reg, out: &mut Block) -> Option<Reg> {
        let ty = self.regs[x.0 as usize];
        let d = ty.dtype;
        if op == BinOp::Div
            && d == DType::F32
            && let Some(r) = self.constants.get(&y).and_then(|c| Reciprocal::of(*c))
        {
            return Some(Emit { regs: self.regs, out, ty }.quotient(x, r));
        }
        if op == BinOp::Pow
            && let Some(n) = self.whole_power(x, y)
        {
            return Some(Emit { regs: self.regs, out, ty }.power(x, n));
        }
        if !self.all || !d.is_float() {
            return None;
        }
        match op {
            BinOp::Pow => self.wide(op.name(), &[x, y], out, |w, x| Some(w.pow(x[0], x[1]))),
            BinOp::Atan2 => self.wide(op.name(), &[x, y], out, |w, x| Some(w.atan2(x[0], x[1]))),
            BinOp::Rem | BinOp::Mod => {
                let narrow = d != DType::F64;
                self.wide(op.name(), &[x, y], out, |w, x| narrow.then(|| w.remainder(x[0], x[1], op == BinOp::Mod)))
            }
            _ => None,
        }
    }

    /// Computes in `f64` and rounds to the operands' type.
    fn wide(
        &mut self,
        name: &str,
        x: &[Reg],
        out: &mut Block,
        f: impl FnOnce(&mut full::Wide<'_>, &[Reg]) -> Option<Reg>,
    ) -> Option<Reg> {
        let ty = self.regs[x[0].0 as usize];
        let x: Vec<Reg> = x.iter().map(|x| self.cast(DType::F64, *x, out)).collect();
        match f(&mut full::Wide { regs: self.regs, out, lanes: ty.lanes }, &x) {
            Some(y) => Some(self.cast(ty.dtype, y, out)),
            None => {
                self.missing.get_or_insert(format!("{name} of {}", ty.dtype));
                None
            }
        }
    }

    fn cast(&mut self, to: DType, x: Reg, out: &mut Block) -> Reg {
        self.regs.push(self.regs[x.0 as usize].with_dtype(to));
        let r = Reg((self.regs.len() - 1) as u32);
        out.push(Stmt::Let(r, Inst::Cast(to, x)));
        r
    }
}

/// Renames the last instruction's register instead of copying it.
fn rename_last(out: &mut Block, last: Reg, dst: Reg) {
    if let Some(Stmt::Let(r, _)) = out.last_mut()
        && *r == last
    {
        *r = dst;
    }
}

/// Appends instructions on values of one `f32` type.
struct Emit<'a> {
    regs: &'a mut Vec<Ty>,
    out: &'a mut Block,
    ty: Ty,
}

/// Coefficients of `(e^r - 1 - r) / r^2` on `|r| <= ln(2)/2`, lowest power first.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_15, 0.041_668_456, 0.008_369_419, 0.001_381_314_2];
/// Coefficients of `(tanh(x)/x - 1) / x^2` in `x^2` for `|x| <= 0.65`.
const TANH: [f32; 5] = [-0.333_332_63, 0.133_309, -0.053_692_963, 0.020_483_307, -0.005_528_624_6];
/// From here on `erf` is 1.
const ERF_END: f32 = 3.925;
/// `erf(x) = x P(x^2) / Q(x^2)` for `|x| <= ERF_END`: coefficients of `P`, lowest power first.
const ERF_P: [f32; 6] =
    [std::f32::consts::FRAC_2_SQRT_PI, 0.190_594_26, 0.052_769_36, 0.003_772_570_3, 0.000_284_843_85, 0.000_002_046_021_6];
/// Coefficients of `Q`.
const ERF_Q: [f32; 6] = [1.0, 0.502_242_5, 0.114_182_92, 0.014_983_238, 0.001_163_862_4, 0.000_038_047_732];
/// Coefficients of `(log(1+f) - f + f^2/2) / f^3` for `1+f` in `[sqrt(1/2), sqrt(2)]`.
const LOG: [f32; 8] =
    [0.333_333_16, -0.250_008_27, 0.200_023_75, -0.166_239_98, 0.141_788_26, -0.131_322_3, 0.129_001_52, -0.078_728_68];

/// ln 2 split so that small multiples of the first part are exact.
const LN2_HI: f32 = 0.693_359_4;
const LN2_LO: f32 = -0.000_212_194_44;
/// Adding and subtracting 1.5 * 2^23 rounds a small float to an integer, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Emit<'_> {
    fn push(&mut self, ty: Ty, inst: Inst) -> Reg {
        self.regs.push(ty);
        let r = Reg((self.regs.len() - 1) as u32);
        self.out.push(Stmt::Let(r, inst));
        r
    }

    fn lit(&mut self, v: Literal) -> Reg {
        let r = self.push(Ty::scalar(v.dtype), Inst::Const(v));
        if self.ty.lanes == 1 { r } else { self.push(self.ty.with_dtype(v.dtype), Inst::Splat(self.ty.lanes, r)) }
    }

    fn num(&mut self, v: f32) -> Reg {
        self.lit(Literal::f32(v))
    }

    fn int(&mut self, v: i32) -> Reg {
        self.lit(Literal::from_i64(DType::I32, v.into()))
    }

    fn un(&mut self, op: UnOp, a: Reg) -> Reg {
        self.push(self.ty, Inst::Un(op, a))
    }

    fn bin(&mut self, op: BinOp, a: Reg, b: Reg) -> Reg {
        let ty = self.regs[a.0 as usize];
        let ty = if op.is_compare() { ty.with_dtype(DType::Bool) } else { ty };
        self.push(ty, Inst::Bin(op, a, b))
    }

    fn fma(&mut self, a: Reg, b: Reg, c: Reg) -> Reg {
        self.push(self.ty, Inst::Fma(a, b, c))
    }

    fn select(&mut self, c: Reg, a: Reg, b: Reg) -> Reg {
        self.push(self.regs[a.0 as usize], Inst::Select(c, a, b))
    }

    fn bits(&mut self, to: DType, a: Reg) -> Reg {
        self.push(self.ty.with_dtype(to), Inst::Bitcast(to, a))
    }

    /// Horner's rule, lowest power first.
    fn poly(&mut self, x: Reg, coefficients: &[f32]) -> Reg {
        let mut acc = self.num(coefficients[coefficients.len() - 1]);
        for c in coefficients.iter().rev().skip(1) {
            let c = self.num(*c);
            acc = self.fma(acc, x, c);
        }
        acc
    }

    /// A polynomial of degree 5, lowest power first, by Estrin's scheme: a chain of three steps in place of five.
    fn poly5(&mut self, x: Reg, c: &[f32; 6]) -> Reg {
        let x2 = self.bin(BinOp::Mul, x, x);
        let x4 = self.bin(BinOp::Mul, x2, x2);
        let [a, b, c] = [0, 2, 4].map(|i| {
            let (low, high) = (self.num(c[i]), self.num(c[i + 1]));
            self.fma(high, x, low)
        });
        let ab = self.fma(b, x2, a);
        self.fma(c, x4, ab)
    }

    /// `2^n` for integer lanes with `-127 < n < 128`.
    fn pow2(&mut self, n: Reg) -> Reg {
        let (bias, shift) = (self.int(127), self.int(23));
        let e = self.bin(BinOp::Add, n, bias);
        let e = self.bin(BinOp::Shl, e, shift);
        self.bits(DType::F32, e)
    }

    /// `e^x = 2^n e^r` with `n = round(x / ln 2)`; `2^n` in two factors, so that denormals and overflow come out right.
    fn exp(&mut self, x: Reg) -> Reg {
        let (top, bottom) = (self.num(89.0), self.num(-104.5));
        // Comparisons are false for NaN, which passes through.
        let c = self.bin(BinOp::Gt, x, top);
        let x = self.select(c, top, x);
        // What ends as zero is not computed as a denormal, over which some processors stumble.
        let c = self.bin(BinOp::Lt, x, bottom);
        let none = self.num(0.0);
        let x = self.select(c, none, x);
        let (q, shifted) = self.exp_reduced(x);
        let magic = self.num(ROUND);
        let shifted = self.bits(DType::I32, shifted);
        let magic = self.bits(DType::I32, magic);
        let n = self.bin(BinOp::Sub, shifted, magic);
        let shift = self.int(1);
        let half = self.bin(BinOp::Shr, n, shift);
        let rest = self.bin(BinOp::Sub, n, half);
        let (f, g) = (self.pow2(half), self.pow2(rest));
        let q = self.bin(BinOp::Mul, q, f);
        let e = self.bin(BinOp::Mul, q, g);
        self.select(c, none, e)
    }

    /// `e^r` with `r = x - n ln 2` and `n = round(x / ln 2)`, and `n` in the low bits of a float: what adding [`ROUND`] gives.
    fn exp_reduced(&mut self, x: Reg) -> (Reg, Reg) {
        let (inv, magic) = (self.num(std::f32::consts::LOG2_E), self.num(ROUND));
        let shifted = self.fma(x, inv, magic);
        let n_float = self.bin(BinOp::Sub, shifted, magic);
        let (hi, lo) = (self.num(-LN2_HI), self.num(-LN2_LO));
        let r = self.fma(n_float, hi, x);
        let r = self.fma(n_float, lo, r);
        let p = self.poly(r, &EXP);
        let r2 = self.bin(BinOp::Mul, r, r);
        let q = self.fma(p, r2, r);
        let one = self.num(1.0);
        let q = self.bin(BinOp::Add, q, one);
        (q, shifted)
    }

    /// See [`softmax_exp`].
    fn softmax_exp(&mut self, x: Reg) -> Reg {
        let (bottom, none) = (self.num(-87.0), self.num(0.0));
        // Comparisons are false for NaN, which passes through.
        let below = self.bin(BinOp::Lt, x, bottom);
        let x = self.select(below, bottom, x);
        let (q, shifted) = self.exp_reduced(x);
        // The integer in the low bits goes to the exponent; what stands above it falls off.
        let [q, n] = [q, shifted].map(|x| self.bits(DType::I32, x));
        let place = self.int(23);
        let n = self.bin(BinOp::Shl, n, place);
        let e = self.bin(BinOp::Add, q, n);
        let e = self.bits(DType::F32, e);
        self.select(below, none, e)
    }

    fn sigmoid(&mut self, x: Reg) -> Reg {
        let n = self.un(UnOp::Neg, x);
        let e = self.exp(n);
        let one = self.num(1.0);
        let d = self.bin(BinOp::Add, e, one);
        self.bin(BinOp::Div, one, d)
    }

    /// A polynomial near zero, `1 - 2 / (e^(2|x|) + 1)` with the sign of `x` elsewhere.
    fn tanh(&mut self, x: Reg) -> Reg {
        let a = self.un(UnOp::Abs, x);
        let two = self.num(2.0);
        let one = self.num(1.0);
        let d = self.bin(BinOp::Mul, a, two);
        let e = self.exp(d);
        let d = self.bin(BinOp::Add, e, one);
        let q = self.bin(BinOp::Div, two, d);
        let large = self.bin(BinOp::Sub, one, q);
        let large = self.copy_sign(large, x);
        let u = self.bin(BinOp::Mul, x, x);
        let p = self.poly(u, &TANH);
        let xu = self.bin(BinOp::Mul, x, u);
        let small = self.fma(p, xu, x);
        self.choose_by_size(a, 0.65, small, large)
    }

    /// A quotient of polynomials.
    fn erf(&mut self, x: Reg) -> Reg {
        let t = self.clamp(x, ERF_END);
        let u = self.bin(BinOp::Mul, t, t);
        let p = self.poly5(u, &ERF_P);
        let q = self.poly5(u, &ERF_Q);
        let tp = self.bin(BinOp::Mul, t, p);
        let y = self.bin(BinOp::Div, tp, q);
        self.clamp(y, 1.0)
    }

    fn quotient(&mut self, x: Reg, by: Reciprocal) -> Reg {
        let high = self.num(by.high);
        let Some(low) = by.low else { return self.bin(BinOp::Mul, x, high) };
        let low = self.num(low);
        let rest = self.bin(BinOp::Mul, x, low);
        self.fma(x, high, rest)
    }

    /// `x` between `-limit` and `limit`; comparisons are false for NaN, which passes through.
    fn clamp(&mut self, x: Reg, limit: f32) -> Reg {
        let (top, bottom) = (self.num(limit), self.num(-limit));
        let c = self.bin(BinOp::Gt, x, top);
        let x = self.select(c, top, x);
        let c = self.bin(BinOp::Lt, x, bottom);
        self.select(c, bottom, x)
    }

    /// `x^n` for `n >= 1`, from the highest bit of `n` down.
    fn power(&mut self, x: Reg, n: u32) -> Reg {
        let mut y = x;
        for bit in (0..n.ilog2()).rev() {
            y = self.bin(BinOp::Mul, y, y);
            if n >> bit & 1 == 1 {
                y = self.bin(BinOp::Mul, y, x);
            }
        }
        y
    }

    /// `log(m 2^e) = log(m) + e ln 2` with `m` in `[sqrt(1/2), sqrt(2))`.
    fn log(&mut self, x: Reg) -> Reg {
        // Denormals are scaled into the normal range first.
        let (tiny, scale) = (self.num(f32::MIN_POSITIVE), self.num(16_777_216.0));
        let small = self.bin(BinOp::Lt, x, tiny);
        let scaled = self.bin(BinOp::Mul, x, scale);
        let y = self.select(small, scaled, x);
        let (zero_i, minus24) = (self.int(0), self.int(-24));
        let e0 = self.select(small, minus24, zero_i);
        let b = self.bits(DType::I32, y);
        let root_half = self.int(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
        let d = self.bin(BinOp::Sub, b, root_half);
        let shift = self.int(23);
        let e = self.bin(BinOp::Shr, d, shift);
        let e_bits = self.bin(BinOp::Shl, e, shift);
        let m = self.bin(BinOp::Sub, b, e_bits);
        let m = self.bits(DType::F32, m);
        let e = self.bin(BinOp::Add, e, e0);
        let e = self.push(self.ty, Inst::Cast(DType::F32, e));
        let one = self.num(1.0);
        let f = self.bin(BinOp::Sub, m, one);
        let p = self.poly(f, &LOG);
        let f2 = self.bin(BinOp::Mul, f, f);
        let f3 = self.bin(BinOp::Mul, f2, f);
        let (lo, hi, minus_half) = (self.num(LN2_LO), self.num(LN2_HI), self.num(-0.5));
        let low = self.bin(BinOp::Mul, e, lo);
        let low = self.fma(p, f3, low);
        let low = self.fma(f2, minus_half, low);
        let low = self.bin(BinOp::Add, f, low);
        let value = self.fma(e, hi, low);
        // Zero gives -inf, negative numbers NaN; +inf and NaN pass.
        let (zero, inf) = (self.num(0.0), self.num(f32::INFINITY));
        let (neg_inf, nan) = (self.num(f32::NEG_INFINITY), self.num(f32::NAN));
        let is_zero = self.bin(BinOp::Eq, x, zero);
        let value = self.select(is_zero, neg_inf, value);
        let negative = self.bin(BinOp::Lt, x, zero);
        let value = self.select(negative, nan, value);
        let finite = self.bin(BinOp::Lt, x, inf);
        // `x + x` rather than `x`: the last instruction must be a new register.
        let passed = self.bin(BinOp::Add, x, x);
        self.select(finite, value, passed)
    }

    fn copy_sign(&mut self, magnitude: Reg, sign: Reg) -> Reg {
        let (m, s) = (self.bits(DType::I32, magnitude), self.bits(DType::I32, sign));
        let mask = self.int(i32::MIN);
        let s = self.bin(BinOp::And, s, mask);
        let m = self.bin(BinOp::Or, m, s);
        self.bits(DType::F32, m)
    }

    /// `small` where `a < limit`, else `large`; NaN takes `large`.
    fn choose_by_size(&mut self, a: Reg, limit: f32, small: Reg, large: Reg) -> Reg {
        let limit = self.num(limit);
        let c = self.bin(BinOp::Lt, a, limit);
        self.select(c, small, large)
    }
}
