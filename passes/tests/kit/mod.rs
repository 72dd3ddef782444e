//! What the tests of the passes share: random inputs, and comparison of two modules under the interpreter.

use std::collections::BTreeMap;

use transc_ir::interp::{EvalError, Tensor, eval_module};
use transc_ir::scalar::Literal;
use transc_ir::types::{DType, Symbol};
use transc_ir::{Module, TensorType};

/// SplitMix64 (Steele et al. 2014).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// A scalar: small integers, floats in [-4, 4), with `special` now and then an infinity, a NaN or a zero.
pub fn literal(r: &mut Random, dtype: DType, special: bool) -> Literal {
    match dtype {
        DType::Bool => Literal::bool(r.one_in(2)),
        d if d.is_float() => {
            let rare = [0.0, -0.0, 1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
            let plain = (r.next() % 8192) as f64 / 1024.0 - 4.0;
            Literal::from_f64(d, if special && r.one_in(24) { *r.pick(&rare) } else { plain })
        }
        d => Literal::from_i64(d, if d.is_signed_int() { r.below(9) as i64 - 4 } else { r.below(9) as i64 }),
    }
}

fn tensor(r: &mut Random, ty: &TensorType, symbols: &BTreeMap<Symbol, i64>, special: bool) -> Tensor {
    let dims: Vec<usize> = ty.dims.iter().map(|d| d.eval(&|s| symbols.get(s).copied()).expect("a bound dim") as usize).collect();
    let mut t = Tensor::zeros(ty.dtype, &dims).expect("a small tensor");
    for i in 0..t.count() {
        t.set(i, literal(r, ty.dtype, special));
    }
    t
}

/// Inputs for a module: its symbols take small values within their ranges.
pub fn inputs(m: &Module, r: &mut Random, special: bool) -> Vec<Tensor> {
    let symbols =
        m.symbols.iter().map(|(s, range)| (s.clone(), range.min + r.below((range.max - range.min).min(4) as usize + 1) as i64));
    let symbols: BTreeMap<Symbol, i64> = symbols.collect();
    m.main.params().iter().map(|(_, v)| tensor(r, m.main.ty(*v), &symbols, special)).collect()
}

/// The first difference between two tensors: type, dims, or an element. All NaNs are one value.
fn difference(a: &Tensor, b: &Tensor, tolerance: f64) -> Option<String> {
    if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
        return Some(format!("{} became {}", a.ty(), b.ty()));
    }
    let differ = |i: &usize| {
        let (x, y) = (a.get(*i), b.get(*i));
        let both_nan = a.dtype.is_float() && x.to_f64().is_nan() && y.to_f64().is_nan();
        let close = a.dtype.is_float() && (x.to_f64() - y.to_f64()).abs() <= tolerance * (1.0 + x.to_f64().abs());
        x.bits != y.bits && !both_nan && !(tolerance > 0.0 && close)
    };
    let i = (0..a.count()).find(differ)?;
    Some(format!("element {i} of {} was {:e}, is {:e}", a.ty(), a.get_f64(i), b.get_f64(i)))
}

/// Evaluates two modules on random inputs, with `special` values or of order one. `Ok(true)` if they agreed, `Ok(false)` if the first one has no value there.
///
/// # Errors
/// The first difference.
pub fn agree(before: &Module, after: &Module, seed: u64, tolerance: f64, special: bool) -> Result<bool, String> {
    let inputs = inputs(before, &mut Random::new(seed), special);
    let want: Vec<Tensor> = match eval_module(before, &inputs) {
        Ok(v) => v,
        Err(EvalError::Unsupported(op)) => return Err(format!("`{op}` is not evaluated")),
        Err(_) => return Ok(false),
    };
    let got = eval_module(after, &inputs).map_err(|e| format!("seed {seed}: {e}"))?;
    let names = before.main.results().iter().map(|r| &r.0);
    for ((name, w), g) in names.zip(&want).zip(&got) {
        if let Some(d) = difference(w, g, tolerance) {
            return Err(format!("seed {seed}, output `{name}`: {d}"));
        }
    }
    if want.len() == got.len() { Ok(true) } else { Err(format!("{} outputs became {}", want.len(), got.len())) }
}
