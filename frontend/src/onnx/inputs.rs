//! The inputs of a model: their types, and the symbolic dims that they introduce.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use transc_ir::diag::Fault;
use transc_ir::interp::Tensor;
use transc_ir::scalar::Literal;
use transc_ir::types::{Symbol, SymbolRange};
use transc_ir::{Dim, Module, TensorType, Value};

use super::error::OpError;
use super::import::{Binding, Importer};
use super::proto::tensor_shape_proto::Dimension;
use super::proto::tensor_shape_proto::dimension::Value as DimValue;
use super::proto::type_proto::Value as TypeValue;
use super::proto::{GraphProto, ValueInfoProto};
use super::tensor;
use crate::Problem;
use crate::error::quote;
use crate::options::{DimOption, Fixed, ImportOptions};

/// The range of a symbolic dim about which nothing is said.
const DEFAULT_RANGE: SymbolRange = SymbolRange { min: 1, max: 65_536 };
/// Where operators take what was computed for earlier tokens: domain, operator, operands, and their axis of tokens.
const CACHES: &[(&str, &str, &[usize], i64)] = &[
    ("", "Attention", &[4, 5], 2),
    ("com.microsoft", "Attention", &[4], 3),
    ("com.microsoft", "GroupQueryAttention", &[3, 4], 2),
    ("com.microsoft", "MultiHeadAttention", &[6, 7], 2),
    ("com.microsoft", "QAttention", &[8], 3),
];

/// Adds the inputs of a graph as parameters, in order. Inputs that have a default become constants.
pub(super) fn declare<'a>(imp: &mut Importer<'a>, g: &'a GraphProto) {
    let mut names = Names { lengths: cache_lengths(g), ..Names::default() };
    for i in &g.input {
        for p in dims(i).filter_map(dim_param) {
            names.lone.extend(is_identifier(p).then_some(p));
        }
    }
    for i in &g.input {
        if imp.scopes[0].names.contains_key(i.name()) {
            continue;
        }
        let fixed = imp.options.fixed_inputs.iter().find(|(n, _)| n == i.name());
        let bound = match fixed {
            Some((_, to)) => fixed_input(imp, &mut names, i, to),
            None => input_type(imp, &mut names, i).map(|ty| imp.module.main.add_param(i.name(), ty)),
        };
        let bound = bound.map_err(|p| imp.problems.push(p.at(i.name(), "input"))).ok();
        imp.scopes[0].names.insert(i.name(), bound.map_or(Binding::Poison, Binding::Value));
    }
    imp.facts.propagate(&imp.module);
    let inputs = || g.input.iter().map(ValueInfoProto::name);
    for (name, _) in &imp.options.fixed_inputs {
        if !inputs().any(|i| i == name) {
            let help = format!("it has: {}", inputs().collect::<Vec<_>>().join(", "));
            imp.problems.push(Problem::invalid("T0116", format!("the model has no input {}", quote(name))).help(help));
        }
    }
    for (name, _) in &imp.options.dims {
        if !names.used.contains(name) {
            let known: Vec<&str> = names.used.iter().map(String::as_str).collect();
            let help =
                if known.is_empty() { "it has no symbolic dims".to_owned() } else { format!("it has: {}", known.join(", ")) };
            imp.problems.push(Problem::invalid("T0116", format!("the model has no symbolic dim {}", quote(name))).help(help));
        }
    }
}

/// Dims that only inputs have which nothing reads may be 0, where nothing else is said of them: a merged decoder is given such caches when its branch for the
/// first step is taken.
pub(super) fn release_unread(m: &mut Module, options: &ImportOptions) {
    let uses = m.main.use_counts();
    let read = |v: Value| m.main.def_node(v).is_some() || uses[v.index()] > 0;
    let mut dims: Vec<Dim> = m.constraints.iter().flat_map(|(a, b, _)| [a.clone(), b.clone()]).collect();
    for v in m.main.params().iter().map(|p| p.1).chain(m.main.nodes().flat_map(|(_, n)| n.results.iter().copied())) {
        dims.extend(m.main.ty(v).dims.iter().filter(|_| read(v)).cloned());
    }
    let seen = RefCell::new(dims);
    for (_, n) in m.main.nodes() {
        n.op.clone().map_dims(&|d| {
            seen.borrow_mut().push(d.clone());
            d.clone()
        });
    }
    let mut symbols = Vec::new();
    seen.borrow().iter().for_each(|d| d.symbols(&mut symbols));
    for (s, r) in m.symbols.iter_mut().filter(|(s, r)| **r == DEFAULT_RANGE && !symbols.contains(s)) {
        if !options.dims.iter().any(|(name, _)| name == s.name()) {
            r.min = 0;
        }
    }
}

/// The constant in place of an input.
fn fixed_input<'a>(imp: &mut Importer<'_>, names: &mut Names<'a>, i: &'a ValueInfoProto, to: &Fixed) -> Result<Value, Problem> {
    let bad = |what: String| Problem::invalid("T0116", format!("the input {} cannot be fixed: {what}", quote(i.name())));
    let t = match to {
        Fixed::Tensor(t) => t.clone(),
        Fixed::Numbers(numbers) => {
            let ty = input_type(imp, names, i)?;
            let dims = ty.dims.iter().map(Dim::as_usize).collect::<Option<Vec<_>>>();
            let dims = dims.ok_or_else(|| bad(format!("it is {ty}, whose dims need numbers")))?;
            let mut t = Tensor::zeros(ty.dtype, &dims).map_err(|e| bad(e.to_string()))?;
            if numbers.len() != t.count() && numbers.len() != 1 {
                return Err(bad(format!("it is {ty}, for {} numbers", numbers.len())));
            }
            for (e, n) in (0..t.count()).zip(numbers.iter().cycle()) {
                t.set(e, Literal::from_f64(ty.dtype, *n));
            }
            t
        }
    };
    imp.tensor(i.name(), t).map_err(|e| match e {
        OpError::Other(p) => *p,
        _ => bad("its data does not fit its dims".into()),
    })
}

#[derive(Default)]
struct Names<'a> {
    /// Symbols that are an extent of their own in some input.
    lone: BTreeSet<&'a str>,
    /// The symbol that stands for each text of the file.
    symbols: BTreeMap<String, String>,
    used: BTreeSet<String>,
    /// Texts that stand for the lengths of caches.
    lengths: BTreeSet<&'a str>,
}

/// Values to which a graph, or one inside it, joins something, and along which axis.
fn find_joined<'a>(g: &'a GraphProto, joined: &mut BTreeSet<(&'a str, i64)>) {
    for n in &g.node {
        if n.op_type() == "Concat" && n.domain().is_empty() && n.input.len() > 1 {
            let axis = n.attribute.iter().find(|a| a.name() == "axis").map_or(0, |a| a.i());
            joined.extend(n.input.iter().map(|i| (i.as_str(), axis)));
        }
        for (.., operands, axis) in CACHES.iter().filter(|c| c.0 == n.domain() && c.1 == n.op_type()) {
            joined.extend(operands.iter().filter_map(|o| n.input.get(*o)).map(|i| (i.as_str(), *axis)));
        }
        n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|inside| find_joined(inside, joined));
    }
}

/// Texts that are extents of caches alone, of inputs to which the model joins something along that axis: at the first step there is nothing in a cache.
fn cache_lengths(g: &GraphProto) -> BTreeSet<&str> {
    let mut joined = BTreeSet::new();
    find_joined(g, &mut joined);
    let (mut lengths, mut others) = (BTreeSet::new(), BTreeSet::new());
    for i in &g.input {
        let dims: Vec<Option<&str>> = dims(i).map(dim_param).collect();
        for (axis, p) in dims.iter().enumerate().filter_map(|(a, p)| Some((a as i64, (*p)?))) {
            let from_end = axis - dims.len() as i64;
            let is_length = [axis, from_end].iter().any(|a| joined.contains(&(i.name(), *a)));
            if is_length {
                lengths.insert(p)
            } else {
                others.insert(p)
            };
        }
    }
    lengths.difference(&others).copied().collect()
}

fn dims(i: &ValueInfoProto) -> impl Iterator<Item = &Dimension> {
    let shape = match i.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(t)) => t.shape.as_ref(),
        _ => None,
    };
    shape.into_iter().flat_map(|s| &s.dim)
}

fn dim_param(d: &Dimension) -> Option<&str> {
    match &d.value {
        Some(DimValue::DimParam(p)) => Some(p.as_str()),
        _ => None,
    }
}

fn input_type<'a>(imp: &mut Importer<'_>, names: &mut Names<'a>, i: &'a ValueInfoProto) -> Result<TensorType, Problem> {
    let what = format!("the input {}", quote(i.name()));
    let t = match i.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(t)) => t,
        Some(other) => {
            let kind = match other {
                TypeValue::SequenceType(_) => "a sequence",
                TypeValue::MapType(_) => "a map",
                TypeValue::OptionalType(_) => "an optional",
                _ => "a sparse tensor",
            };
            return Err(Problem::new("T0310", Fault::Unsupported, format!("{what} is {kind}; only tensors are supported")));
        }
        None => return Err(Problem::invalid("T0120", format!("{what} has no type"))),
    };
    let dtype = tensor::dtype(t.elem_type(), &what)?;
    let Some(shape) = &t.shape else {
        return Err(Problem::new("T0310", Fault::Unsupported, format!("{what} has no shape; its number of axes must be known")));
    };
    if shape.dim.len() > imp.options.limits.rank {
        return Err(Problem::limit(
            "T0107",
            format!("{what} has {} axes, the limit is {}", shape.dim.len(), imp.options.limits.rank),
        ));
    }
    let mut dims = Vec::new();
    for (axis, d) in shape.dim.iter().enumerate() {
        dims.push(match &d.value {
            Some(DimValue::DimValue(v)) if *v < 0 => {
                return Err(Problem::invalid("T0121", format!("{what} has the negative dimension {v}")));
            }
            Some(DimValue::DimValue(v)) => Dim::from(*v),
            Some(DimValue::DimParam(p)) if !p.is_empty() => named(imp, names, p)?,
            _ => named(imp, names, &format!("{}_dim{axis}", i.name()))?,
        });
    }
    Ok(TensorType::new(dtype, dims))
}

/// The dim that a text of the file stands for: a symbol, or an expression over symbols that other inputs define.
fn named(imp: &mut Importer<'_>, names: &mut Names<'_>, text: &str) -> Result<Dim, Problem> {
    if !is_identifier(text)
        && let Some(expr) = Expr::parse(text)
        && expr.symbols.iter().all(|s| names.lone.contains(s.as_str()))
    {
        let mut parts = BTreeMap::new();
        for s in &expr.symbols {
            parts.insert(s.clone(), symbol(imp, names, s)?);
        }
        return Ok(expr.dim.subst(&|s| parts.get(s.name()).cloned()));
    }
    symbol(imp, names, text)
}

fn symbol(imp: &mut Importer<'_>, names: &mut Names<'_>, text: &str) -> Result<Dim, Problem> {
    let name = match names.symbols.get(text) {
        Some(n) => n.clone(),
        None => {
            let mut n: String =
                text.chars().take(64).map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
            // Digits in front, and the functions of dim expressions, are not names.
            if n.is_empty()
                || n.starts_with(|c: char| c.is_ascii_digit())
                || matches!(n.as_str(), "floordiv" | "mod" | "min" | "max")
            {
                n.insert(0, 'd');
            }
            // `a/b` and `a_b` must not become one.
            let base = n.clone();
            for k in 2.. {
                if !names.symbols.values().any(|used| *used == n) {
                    break;
                }
                n = format!("{base}_{k}");
            }
            names.symbols.insert(text.to_owned(), n.clone());
            n
        }
    };
    names.used.insert(name.clone());
    let option = imp.options.dims.iter().find(|(n, _)| *n == name).map(|(_, o)| *o);
    let range = match option {
        Some(DimOption::Fixed(v)) if v >= 0 => return Ok(Dim::from(v)),
        Some(DimOption::Range(min, max)) if 0 <= min && min <= max => SymbolRange { min, max },
        Some(_) => return Err(Problem::invalid("T0116", format!("the dim {} has an empty or negative range", quote(&name)))),
        None if names.lengths.contains(text) => SymbolRange { min: 0, ..DEFAULT_RANGE },
        None => DEFAULT_RANGE,
    };
    imp.module.symbols.insert(Symbol::new(&name), range);
    Ok(Dim::sym(&name))
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A sum of products as exporters write dims: `past_length + 1`, `2*s0`.
struct Expr {
    dim: Dim,
    symbols: Vec<String>,
}

impl Expr {
    fn parse(text: &str) -> Option<Expr> {
        if text.len() > 256 {
            return None;
        }
        let mut symbols = Vec::new();
        let mut sum = Dim::from(0);
        let spaced = text.replace('-', "+-");
        for term in spaced.split('+').map(str::trim).filter(|t| !t.is_empty()) {
            let (sign, term) = match term.strip_prefix('-') {
                Some(rest) => (-1, rest),
                None => (1, term),
            };
            let mut product = Dim::from(sign);
            for factor in term.split('*').map(str::trim) {
                let f = match factor.parse::<i64>() {
                    Ok(v) => Dim::from(v),
                    Err(_) if is_identifier(factor) => {
                        symbols.push(factor.to_owned());
                        Dim::sym(factor)
                    }
                    Err(_) => return None,
                };
                product = &product * &f;
            }
            sum = &sum + &product;
        }
        Some(Expr { dim: sum, symbols })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_exporters_are_read() {
        let e = Expr::parse("past_sequence_length + 1").map(|e| e.dim.to_string());
        assert_eq!(e.as_deref(), Some("past_sequence_length+1"));
        assert_eq!(Expr::parse("2*s0 - s1*3").map(|e| e.dim.to_string()).as_deref(), Some("2*s0-3*s1"));
        assert!(Expr::parse("floor(s0/2)").is_none());
    }
}
