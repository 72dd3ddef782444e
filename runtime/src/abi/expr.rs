//! Dim expressions of the plan.

use serde::{Deserialize, Serialize};

use crate::Error;

/// An integer expression over the plan's symbols.
///
/// Encoded as a flat list in postfix order, so that decoding untrusted bytes needs no recursion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Item>", into = "Vec<Item>")]
pub enum Expr {
    /// A number.
    Const(i64),
    /// A symbol by position.
    Sym(u32),
    /// Sum; 0 if empty.
    Add(Vec<Expr>),
    /// Product; 1 if empty.
    Mul(Vec<Expr>),
    /// Quotient toward minus infinity.
    FloorDiv(Box<Expr>, Box<Expr>),
    /// Remainder with the sign of the divisor.
    Mod(Box<Expr>, Box<Expr>),
    /// Minimum.
    Min(Box<Expr>, Box<Expr>),
    /// Maximum.
    Max(Box<Expr>, Box<Expr>),
}

/// Deepest nesting of an expression, which bounds every recursion over it.
const MAX_DEPTH: usize = 64;

/// One entry of the encoded form; operators take their operands from the end of what came before.
#[derive(Serialize, Deserialize)]
enum Item {
    Const(i64),
    Sym(u32),
    Add(u32),
    Mul(u32),
    FloorDiv,
    Mod,
    Min,
    Max,
}

impl From<Expr> for Vec<Item> {
    fn from(e: Expr) -> Self {
        let mut items = Vec::new();
        flatten(&e, &mut items);
        items
    }
}

fn flatten(e: &Expr, out: &mut Vec<Item>) {
    let pair = |a: &Expr, b: &Expr, op: Item, out: &mut Vec<Item>| {
        flatten(a, out);
        flatten(b, out);
        out.push(op);
    };
    match e {
        Expr::Const(c) => out.push(Item::Const(*c)),
        Expr::Sym(i) => out.push(Item::Sym(*i)),
        Expr::Add(v) => {
            v.iter().for_each(|e| flatten(e, out));
            out.push(Item::Add(v.len() as u32));
        }
        Expr::Mul(v) => {
            v.iter().for_each(|e| flatten(e, out));
            out.push(Item::Mul(v.len() as u32));
        }
        Expr::FloorDiv(a, b) => pair(a, b, Item::FloorDiv, out),
        Expr::Mod(a, b) => pair(a, b, Item::Mod, out),
        Expr::Min(a, b) => pair(a, b, Item::Min, out),
        Expr::Max(a, b) => pair(a, b, Item::Max, out),
    }
}

impl TryFrom<Vec<Item>> for Expr {
    type Error = &'static str;

    fn try_from(items: Vec<Item>) -> Result<Self, Self::Error> {
        const SHORT: &str = "an operator of an expression lacks operands";
        // Each entry with its depth: a tree that is too deep is refused before it is built, so dropping it cannot recurse far either.
        let mut stack: Vec<(Expr, usize)> = Vec::new();
        for item in items {
            let n = match item {
                Item::Const(_) | Item::Sym(_) => 0,
                Item::Add(n) | Item::Mul(n) => n as usize,
                _ => 2,
            };
            let operands = stack.split_off(stack.len().checked_sub(n).ok_or(SHORT)?);
            let depth = 1 + operands.iter().map(|(_, d)| *d).max().unwrap_or(0);
            if depth > MAX_DEPTH {
                return Err("an expression is nested too deep");
            }
            let mut operands = operands.into_iter().map(|(e, _)| e);
            let mut next = || operands.next().map(Box::new).ok_or(SHORT);
            let e = match item {
                Item::Const(c) => Expr::Const(c),
                Item::Sym(i) => Expr::Sym(i),
                Item::FloorDiv => Expr::FloorDiv(next()?, next()?),
                Item::Mod => Expr::Mod(next()?, next()?),
                Item::Min => Expr::Min(next()?, next()?),
                Item::Max => Expr::Max(next()?, next()?),
                Item::Add(_) => Expr::Add(operands.collect()),
                Item::Mul(_) => Expr::Mul(operands.collect()),
            };
            stack.push((e, depth));
        }
        match (stack.pop(), stack.is_empty()) {
            (Some((e, _)), true) => Ok(e),
            _ => Err("an encoded expression is not one expression"),
        }
    }
}

impl Expr {
    /// The value for symbol values.
    ///
    /// # Errors
    /// Overflow, a division by zero, or a symbol outside `syms`.
    pub fn eval(&self, syms: &[i64]) -> Result<i64, Error> {
        self.try_eval(syms).ok_or(Error::Arithmetic)
    }

    fn try_eval(&self, syms: &[i64]) -> Option<i64> {
        Some(match self {
            Expr::Const(c) => *c,
            Expr::Sym(i) => *syms.get(*i as usize)?,
            Expr::Add(v) => v.iter().try_fold(0i64, |a, e| a.checked_add(e.try_eval(syms)?))?,
            Expr::Mul(v) => v.iter().try_fold(1i64, |a, e| a.checked_mul(e.try_eval(syms)?))?,
            Expr::FloorDiv(a, b) => floor_div(a.try_eval(syms)?, b.try_eval(syms)?)?,
            Expr::Mod(a, b) => {
                let (a, b) = (a.try_eval(syms)?, b.try_eval(syms)?);
                a.checked_sub(floor_div(a, b)?.checked_mul(b)?)?
            }
            Expr::Min(a, b) => a.try_eval(syms)?.min(b.try_eval(syms)?),
            Expr::Max(a, b) => a.try_eval(syms)?.max(b.try_eval(syms)?),
        })
    }

    /// The expression as `scale * symbol + rest` in the one symbol that `known` has no value for; `scale` is 0 and the symbol meaningless if
    /// all have one. `None` if it is not affine, depends on two unknown symbols, or overflows.
    pub(crate) fn affine(&self, known: &dyn Fn(u32) -> Option<i64>) -> Option<Affine> {
        let constant = |rest| Affine { scale: 0, symbol: 0, rest };
        match self {
            Expr::Const(c) => Some(constant(*c)),
            Expr::Sym(i) => Some(known(*i).map_or(Affine { scale: 1, symbol: *i, rest: 0 }, constant)),
            Expr::Add(v) => v.iter().try_fold(constant(0), |a, e| a.add(e.affine(known)?)),
            Expr::Mul(v) => v.iter().try_fold(constant(1), |a, e| a.mul(e.affine(known)?)),
            Expr::FloorDiv(a, b) | Expr::Mod(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
                let (l, r) = (a.affine(known)?, b.affine(known)?);
                if l.scale != 0 || r.scale != 0 {
                    return None;
                }
                Some(constant(match self {
                    Expr::FloorDiv(..) => floor_div(l.rest, r.rest)?,
                    Expr::Mod(..) => l.rest.checked_sub(floor_div(l.rest, r.rest)?.checked_mul(r.rest)?)?,
                    Expr::Min(..) => l.rest.min(r.rest),
                    _ => l.rest.max(r.rest),
                }))
            }
        }
    }

    /// True if nesting and symbols are within bounds.
    pub(crate) fn valid(&self, n_symbols: usize) -> bool {
        fn inside(e: &Expr, left: usize, n: usize) -> bool {
            if left == 0 {
                return false;
            }
            match e {
                Expr::Const(_) => true,
                Expr::Sym(i) => (*i as usize) < n,
                Expr::Add(v) | Expr::Mul(v) => v.iter().all(|e| inside(e, left - 1, n)),
                Expr::FloorDiv(a, b) | Expr::Mod(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
                    inside(a, left - 1, n) && inside(b, left - 1, n)
                }
            }
        }
        inside(self, MAX_DEPTH, n_symbols)
    }

    /// The expression with symbol names, such as `batch*12+1`.
    pub fn display(&self, names: &dyn Fn(u32) -> String) -> String {
        let join = |v: &[Expr], s: &str| v.iter().map(|e| e.display(names)).collect::<Vec<_>>().join(s);
        let factor = |e: &Expr| match e {
            Expr::Add(v) if v.len() > 1 => format!("({})", e.display(names)),
            _ => e.display(names),
        };
        let call = |f: &str, a: &Expr, b: &Expr| format!("{f}({},{})", a.display(names), b.display(names));
        match self {
            Expr::Const(c) => c.to_string(),
            Expr::Sym(i) => names(*i),
            Expr::Add(v) if v.is_empty() => "0".into(),
            Expr::Mul(v) if v.is_empty() => "1".into(),
            Expr::Add(v) => join(v, "+").replace("+-", "-"),
            Expr::Mul(v) => v.iter().map(factor).collect::<Vec<_>>().join("*"),
            Expr::FloorDiv(a, b) => call("floordiv", a, b),
            Expr::Mod(a, b) => call("mod", a, b),
            Expr::Min(a, b) => call("min", a, b),
            Expr::Max(a, b) => call("max", a, b),
        }
    }
}

/// See [`Expr::affine`].
#[derive(Clone, Copy)]
pub(crate) struct Affine {
    pub(crate) scale: i64,
    pub(crate) symbol: u32,
    pub(crate) rest: i64,
}

impl Affine {
    fn add(self, o: Affine) -> Option<Affine> {
        if self.scale != 0 && o.scale != 0 && self.symbol != o.symbol {
            return None;
        }
        let symbol = if self.scale != 0 { self.symbol } else { o.symbol };
        Some(Affine { scale: self.scale.checked_add(o.scale)?, symbol, rest: self.rest.checked_add(o.rest)? })
    }

    fn mul(self, o: Affine) -> Option<Affine> {
        let (a, factor) = match (self.scale, o.scale) {
            (_, 0) => (self, o.rest),
            (0, _) => (o, self.rest),
            _ => return None,
        };
        Some(Affine { scale: a.scale.checked_mul(factor)?, symbol: a.symbol, rest: a.rest.checked_mul(factor)? })
    }
}

/// `a / b` toward minus infinity; `None` for a zero divisor or overflow.
fn floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(f: fn(Box<Expr>, Box<Expr>) -> Expr, a: i64, b: i64) -> Option<i64> {
        f(Box::new(Expr::Const(a)), Box::new(Expr::Const(b))).try_eval(&[])
    }

    #[test]
    fn division_rounds_down_and_never_panics() {
        for (a, b) in [(7i64, 2i64), (-7, 2), (7, -2), (-7, -2), (6, 3), (-6, 3), (0, -5)] {
            let floor = (a as f64 / b as f64).floor() as i64;
            assert_eq!(pair(Expr::FloorDiv, a, b), Some(floor), "{a} / {b}");
            assert_eq!(pair(Expr::Mod, a, b), Some(a - floor * b), "{a} mod {b}");
        }
        for (a, b) in [(1, 0), (i64::MIN, -1)] {
            assert_eq!(pair(Expr::FloorDiv, a, b), None);
            assert_eq!(pair(Expr::Mod, a, b), None);
        }
        assert!(matches!(Expr::Mul(vec![Expr::Const(i64::MAX), Expr::Const(2)]).eval(&[]), Err(Error::Arithmetic)));
        assert!(matches!(Expr::Sym(1).eval(&[5]), Err(Error::Arithmetic)));
    }

    #[test]
    fn the_encoded_form_comes_back() {
        let s = || Box::new(Expr::Sym(0));
        let all = Expr::Add(vec![
            Expr::Mul(vec![Expr::Const(-3), Expr::Sym(1), Expr::Add(vec![])]),
            Expr::FloorDiv(s(), Box::new(Expr::Const(2))),
            Expr::Mod(s(), s()),
            Expr::Min(s(), Box::new(Expr::Max(s(), s()))),
        ]);
        let bytes = postcard::to_allocvec(&all).expect("encodes");
        assert_eq!(postcard::from_bytes::<Expr>(&bytes).expect("decodes"), all);
    }

    #[test]
    fn hostile_encodings_are_refused_without_recursion() {
        let mut deep = vec![Item::Const(1)];
        deep.extend((0..1_000_000).map(|_| Item::Add(1)));
        let cases = [deep, vec![], vec![Item::Min], vec![Item::Const(1), Item::Const(2)], vec![Item::Add(u32::MAX)]];
        for items in cases {
            let bytes = postcard::to_allocvec(&items).expect("encodes");
            assert!(postcard::from_bytes::<Expr>(&bytes).is_err());
        }
    }

    #[test]
    fn expressions_print_with_names() {
        let e = Expr::Mul(vec![Expr::Add(vec![Expr::Sym(0), Expr::Const(1)]), Expr::Sym(1)]);
        let names = |i: u32| ["batch", "seq"][i as usize].to_string();
        assert_eq!(e.display(&names), "(batch+1)*seq");
        assert_eq!(Expr::Add(vec![Expr::Sym(1), Expr::Const(-2)]).display(&names), "seq-2");
    }
}
