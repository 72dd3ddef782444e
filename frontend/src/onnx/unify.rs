//! Dims that must be equal although they are written differently.
//!
//! A dim that is one symbol is replaced everywhere by the dim that it must equal. Otherwise nothing can be proven at compile time and
//! the model is not supported.

use transc_ir::tensor::rewrite::{map_dims, substitute_dims};
use transc_ir::types::{Atom, Symbol, SymbolRange};
use transc_ir::{Dim, Value};

use super::cx::OpCx;
use super::error::{OpError, Result, too_symbolic};
use super::import::Importer;

/// Largest divisor that a symbol is made a multiple of.
const MAX_DIVISOR: i64 = 1 << 16;
/// Most rests of a division that are tried.
const MAX_RESTS: i64 = 1 << 10;

impl OpCx<'_, '_> {
    /// Makes two dims equal, or finds that they are.
    ///
    /// # Errors
    /// [`OpError::Retry`] if that replaced a symbol; constants that differ are left to the type rules.
    pub(super) fn equal(&mut self, a: &Dim, b: &Dim) -> Result<()> {
        if a == b || a.as_const().is_some() && b.as_const().is_some() {
            return Ok(());
        }
        if self.decide(a, b) || self.imp.replace_symbol(a, b) || self.imp.make_multiple(a, b) {
            return Err(OpError::Retry);
        }
        too_symbolic(format!("needs the dims {a} and {b} to be equal, which does not follow from the model's inputs"))
    }

    /// Makes two dims equal that differ by a minimum or maximum, by deciding which of its operands it is: `min(64, s) = s` says that `s` is at most 64.
    fn decide(&mut self, a: &Dim, b: &Dim) -> bool {
        let mut choices = Vec::new();
        (a - b).each_atom(&mut |atom| {
            let (Atom::Min(x, y) | Atom::Max(x, y)) = atom else { return };
            for (by, other) in [(x, y), (y, x)] {
                let not_negative = if matches!(atom, Atom::Max(..)) { by - other } else { other - by };
                choices.push((atom.clone(), by.clone(), not_negative));
            }
        });
        let replaced = |d: &Dim, atom: &Atom, by: &Dim| d.replace(&|a| (a == atom).then(|| by.clone()));
        for (atom, by, not_negative) in choices {
            let equal = replaced(a, &atom, &by) == replaced(b, &atom, &by);
            if equal && self.assume_not_negative(&not_negative, "dims are equal that the model makes equal") {
                let ranges = self.imp.module.symbols.clone();
                map_dims(&mut self.imp.module, &|d| replaced(d, &atom, &by).within(&ranges));
                self.imp.facts.reset();
                return true;
            }
        }
        false
    }

    /// Makes the operands of an element-wise operation broadcast.
    ///
    /// # Errors
    /// As [`OpCx::equal`].
    pub(super) fn broadcastable(&mut self, operands: &[Value]) -> Result<()> {
        let all: Vec<Vec<Dim>> = operands.iter().map(|v| self.dims(*v)).collect();
        let rank = all.iter().map(Vec::len).max().unwrap_or(0);
        for back in 1..=rank {
            let mut wide: Option<&Dim> = None;
            for dims in &all {
                let Some(d) = dims.len().checked_sub(back).map(|i| &dims[i]).filter(|d| !d.is(1)) else { continue };
                match wide {
                    Some(w) => self.equal(w, d)?,
                    None => wide = Some(d),
                }
            }
        }
        Ok(())
    }

    /// Makes a dim a multiple of another.
    ///
    /// # Errors
    /// [`OpError::Retry`] if that replaced a symbol; constants that do not divide are left to the caller.
    pub(super) fn multiple(&mut self, d: &Dim, of: &Dim) -> Result<()> {
        if self.imp.divide(d, of, &Dim::from(0)) { Err(OpError::Retry) } else { Ok(()) }
    }

    /// Makes two element counts equal by a symbol in one that is not in the other.
    ///
    /// # Errors
    /// As [`OpCx::equal`].
    pub(super) fn equal_counts(&mut self, a: &[Dim], b: &[Dim]) -> Result<()> {
        let (mut a, mut b) = (a.to_vec(), b.to_vec());
        // Factors that both sides have cancel.
        a.retain(|d| match b.iter().position(|e| e == d) {
            Some(i) => {
                b.remove(i);
                false
            }
            None => true,
        });
        let named = |v: &[Dim]| v.iter().map(reduced).filter(|d| !d.is(1)).collect::<Vec<_>>();
        let (names_a, names_b) = (named(&a), named(&b));
        let product = |v: &[Dim]| v.iter().product::<Dim>();
        let (a, b) = (product(&a), product(&b));
        // Axes that stand in one order on both sides are the same.
        let mut all = names_a.iter().chain(&names_b);
        if names_a.len() == names_b.len() && content(&a) == content(&b) && all.all(|d| d.as_symbol().is_some()) {
            return names_a.iter().zip(&names_b).try_for_each(|(x, y)| self.equal(x, y));
        }
        // `4*S = 4*T` and `B*S = B*T` reduce to `S = T`.
        if let Some(q) = a.exact_div(&b).or_else(|| b.exact_div(&a)) {
            return self.equal(&q, &Dim::from(1));
        }
        for (m, _) in a.terms().into_iter().chain(b.terms()) {
            for factor in m {
                let f = match factor {
                    Atom::Sym(s) => Dim::from(s),
                    _ => continue,
                };
                if let (Some(x), Some(y)) = (a.exact_div(&f), b.exact_div(&f)) {
                    return self.equal_counts(&[x], &[y]);
                }
            }
        }
        let (ca, cb) = (content(&a), content(&b));
        let g = gcd(ca, cb);
        if g > 1
            && let (Some(x), Some(y)) = (a.exact_div(&g.into()), b.exact_div(&g.into()))
        {
            return self.equal(&x, &y);
        }
        self.equal(&a, &b)
    }
}

/// Order of dims.
impl OpCx<'_, '_> {
    /// The smaller of two dims, decided by the ranges of the symbols where possible.
    pub(super) fn min(&self, a: &Dim, b: &Dim) -> Dim {
        a.min_within(b, &self.imp.module.symbols)
    }

    /// The larger of two dims, decided by the ranges of the symbols where possible.
    pub(super) fn max(&self, a: &Dim, b: &Dim) -> Dim {
        a.max_within(b, &self.imp.module.symbols)
    }

    /// From here on the axes of a value from `first` on are not empty.
    pub(super) fn assume_not_empty(&mut self, v: Value, first: usize) {
        for d in self.dims(v).into_iter().skip(first) {
            self.assume_not_negative(&(&d - &Dim::from(1)), "windows fit their input");
        }
    }

    /// From here on `d` is not negative: the range of its only symbol shrinks, or the model checks it when it runs. False if it is
    /// always negative.
    pub(super) fn assume_not_negative(&mut self, d: &Dim, why: &str) -> bool {
        let (lo, hi) = d.bounds(&self.imp.module.symbols);
        if lo >= 0 || hi < 0 {
            return lo >= 0;
        }
        // `floordiv(a, c) + k >= 0` is `a + k * c >= 0`.
        if let Some(inner) = without_quotient(d) {
            return self.assume_not_negative(&inner, why);
        }
        if let Some((symbol, factor, constant)) = linear(d)
            && let Some(r) = self.imp.module.symbols.get_mut(&symbol)
        {
            // `factor * s + constant >= 0`
            if factor > 0 {
                r.min = r.min.max(-constant.div_euclid(factor));
            } else {
                r.max = r.max.min(constant.div_euclid(-factor));
            }
            return r.min <= r.max;
        }
        let clamped = d.max_with(&Dim::from(0));
        let row = (clamped, d.clone(), why.to_owned());
        if !self.imp.module.constraints.contains(&row) {
            self.imp.module.constraints.push(row);
        }
        true
    }
}

/// `a + k * c` of `floordiv(a, c) + k`, for a constant divisor.
fn without_quotient(d: &Dim) -> Option<Dim> {
    let (mut quotient, mut constant) = (None, 0);
    for (m, k) in d.terms() {
        match m.as_slice() {
            [] => constant = k,
            [Atom::FloorDiv(a, c)] if k == 1 && quotient.is_none() => {
                quotient = Some((a.clone(), c.as_const().filter(|c| *c > 0)?))
            }
            _ => return None,
        }
    }
    let (a, c) = quotient?;
    Some(&a + &Dim::from(constant.checked_mul(c)?))
}

/// Symbol, factor and constant of `factor * symbol + constant`.
fn linear(d: &Dim) -> Option<(Symbol, i64, i64)> {
    let (mut symbol, mut constant) = (None, 0);
    for (m, c) in d.terms() {
        match m.as_slice() {
            [] => constant = c,
            [Atom::Sym(s)] if symbol.is_none() => symbol = Some((s.clone(), c)),
            _ => return None,
        }
    }
    symbol.map(|(s, f)| (s, f, constant))
}

/// The dim by the greatest common divisor of its coefficients: zero where the dim is.
fn reduced(d: &Dim) -> Dim {
    d.exact_div(&content(d).max(1).into()).unwrap_or_else(|| d.clone())
}

/// The greatest common divisor of the coefficients.
fn content(d: &Dim) -> i64 {
    d.terms().iter().fold(0, |g, (_, c)| gcd(g, *c))
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a.wrapping_rem(b)) }
}

impl Importer<'_> {
    /// Replaces a symbol so that two dims become equal. Of two symbols the one that was declared first stays.
    fn replace_symbol(&mut self, a: &Dim, b: &Dim) -> bool {
        let rank = |s: &Symbol| self.module.symbols.get_index_of(s).unwrap_or(usize::MAX);
        let (symbol, by) = match (a.as_symbol(), b.as_symbol()) {
            (Some(s), Some(t)) if rank(s) < rank(t) => (t, a),
            (Some(s), _) if !mentions(b, s) => (s, b),
            (_, Some(t)) if !mentions(a, t) => (t, a),
            _ => match self.solve(&reduced(&(a - b))) {
                Some((s, by)) => return self.substitute(s, by),
                None => return false,
            },
        };
        let (symbol, by) = (symbol.clone(), by.clone());
        self.substitute(symbol, by)
    }

    /// The symbol that was declared last of those that `d = 0` determines, and what it is.
    fn solve(&self, d: &Dim) -> Option<(Symbol, Dim)> {
        let rank = |s: &Symbol| self.module.symbols.get_index_of(s).unwrap_or(0);
        let terms = d.terms();
        let alone = terms.iter().filter_map(|(m, c)| match m.as_slice() {
            [Atom::Sym(s)] if c.abs() == 1 => Some((s, *c)),
            _ => None,
        });
        let determined = alone.filter_map(|(s, c)| {
            let rest = d - &(&Dim::from(s.clone()) * &Dim::from(c));
            (!mentions(&rest, s)).then(|| (s.clone(), &rest * &Dim::from(-c)))
        });
        determined.max_by_key(|(s, _)| rank(s))
    }

    /// Makes two dims equal that differ by what is left of a division: `d = n * floordiv(d, n)` says that `d` is a multiple of `n`.
    fn make_multiple(&mut self, a: &Dim, b: &Dim) -> bool {
        let difference = a - b;
        let divisions: Vec<_> = difference.terms().into_iter().flat_map(|(m, _)| m).collect();
        divisions.iter().any(|atom| match atom {
            Atom::FloorDiv(d, n) | Atom::Mod(d, n) => self.divide(d, n, &difference),
            _ => false,
        })
    }

    /// Makes `d` a multiple of `n` where that makes `zero` 0.
    fn divide(&mut self, d: &Dim, n: &Dim, zero: &Dim) -> bool {
        match n.as_const() {
            Some(n) => n > 0 && self.divide_symbol(d, n, zero),
            None => self.multiply_symbol(d, n, zero),
        }
    }

    /// Makes `d`, a symbol, a multiple of a dim where that makes `zero` 0: the symbol becomes the dim times a new one.
    fn multiply_symbol(&mut self, d: &Dim, n: &Dim, zero: &Dim) -> bool {
        let Some(symbol) = d.as_symbol().cloned().filter(|s| !mentions(n, s)) else { return false };
        let Some(range) = self.module.symbols.get(&symbol).copied() else { return false };
        let (lo, hi) = n.bounds(&self.module.symbols);
        if lo < 1 {
            return false;
        }
        let part = self.unused(format!("{symbol}_by"));
        let by = n * &Dim::from(part.clone());
        if !zero.subst(&|s| (*s == symbol).then(|| by.clone())).is(0) {
            return false;
        }
        let ceil = |a: i64, b: i64| a.div_euclid(b) + i64::from(a.rem_euclid(b) != 0);
        self.module.symbols.insert(part, SymbolRange { min: ceil(range.min, hi), max: range.max / lo });
        let inside = by.max_with(&range.min.into()).min_with(&range.max.into());
        self.module.constraints.push((inside, by.clone(), format!("{symbol} is in its range")));
        self.substitute(symbol, by)
    }

    /// A symbol that is not declared yet.
    fn unused(&self, mut name: String) -> Symbol {
        while self.module.symbols.contains_key(&Symbol::new(&name)) {
            name.push('_');
        }
        Symbol::new(&name)
    }

    /// Makes `d`, which is linear in one symbol, a multiple of `n`, or of what else makes `zero` 0: the symbol becomes a multiple of a new one, and a rest.
    fn divide_symbol(&mut self, d: &Dim, n: i64, zero: &Dim) -> bool {
        let Some((symbol, factor, constant)) = linear(d) else { return false };
        let step = n / gcd(factor, n);
        let Some(range) = self.module.symbols.get(&symbol).copied() else { return false };
        let part = self.unused(format!("{symbol}_by_{step}"));
        let by = |rest: i64| &(&Dim::from(part.clone()) * &Dim::from(step)) + &Dim::from(rest);
        let fits = |rest: &i64| match zero.as_const() {
            Some(c) => c == 0 && (factor * rest + constant).rem_euclid(n) == 0,
            None => zero.subst(&|s| (*s == symbol).then(|| by(*rest))).is(0),
        };
        let tries = if zero.as_const().is_some() { MAX_DIVISOR } else { MAX_RESTS };
        let Some(first) = (0..step.min(tries)).find(fits).filter(|_| step > 1) else { return false };
        let (min, max) = ((range.min - first + step - 1).div_euclid(step), (range.max - first).div_euclid(step));
        if min > max {
            return false;
        }
        let by = by(first);
        self.module.symbols.insert(part, SymbolRange { min, max });
        self.substitute(symbol, by)
    }

    /// Replaces a symbol everywhere. False if the two have no value in common.
    fn substitute(&mut self, symbol: Symbol, by: Dim) -> bool {
        // The replacement must be able to take a value that the symbol may have.
        let (lo, hi) = by.bounds(&self.module.symbols);
        let Some(range) = self.module.symbols.get(&symbol).copied() else { return false };
        if hi < range.min || lo > range.max {
            return false;
        }
        if let Some(other) = by.as_symbol()
            && let Some(r) = self.module.symbols.get_mut(other)
        {
            r.min = r.min.max(range.min);
            r.max = r.max.min(range.max);
        }
        let map = |s: &Symbol| (*s == symbol).then(|| by.clone());
        substitute_dims(&mut self.module, &map);
        self.facts.reset();
        true
    }
}

/// True if a symbol is in a dim.
pub(super) fn mentions(d: &Dim, s: &Symbol) -> bool {
    let mut all = Vec::new();
    d.symbols(&mut all);
    all.contains(s)
}
