//! The printer. Values are numbered in order of definition, so that equal functions print equally.

use std::fmt::{self, Write as _};

use crate::op::Op;
use crate::scalar::{Body, Inst, Literal, Ref};
use crate::tensor::{ConstData, Func, Module};
use crate::types::DType;

/// Constants of up to this many elements print their values.
pub(super) const INLINE_ELEMENTS: usize = 64;

/// The shortest decimal that reads back as the same `f64`.
pub(crate) fn float(v: f64) -> String {
    if v.is_nan() {
        "nan".into()
    } else if v.is_infinite() {
        if v > 0.0 { "inf".into() } else { "-inf".into() }
    } else {
        format!("{v:?}")
    }
}

fn literal(l: Literal) -> String {
    match l.dtype {
        DType::F32 => {
            let v = f32::from_bits(l.bits as u32);
            if v.is_finite() { format!("{v:?}") } else { float(v.into()) }
        }
        d if d.is_float() => float(l.to_f64()),
        DType::U64 => l.bits.to_string(),
        _ => l.to_i64().to_string(),
    }
}

fn quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if c.is_control() => write!(out, "{}", c.escape_unicode()),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}

/// Appends a scalar body: `{2: i0 = mul a0 a1; i0}`.
pub(crate) fn print_body(b: &Body, out: &mut String) {
    let name = |r: Ref| match r {
        Ref::Arg(i) => format!("a{i}"),
        Ref::Inst(i) => format!("i{i}"),
    };
    let _ = write!(out, "{{{}: ", b.n_args);
    for (i, inst) in b.insts.iter().enumerate() {
        let text = match inst {
            Inst::Const(l) => format!("const {} {}", l.dtype, literal(*l)),
            Inst::Dim(d) => format!("dim {d}"),
            Inst::Un(op, a) => format!("{} {}", op.name(), name(*a)),
            Inst::Bin(op, x, y) => format!("{} {} {}", op.name(), name(*x), name(*y)),
            Inst::Select(c, x, y) => format!("select {} {} {}", name(*c), name(*x), name(*y)),
            Inst::Cast(d, a) => format!("cast {d} {}", name(*a)),
        };
        let _ = write!(out, "i{i} = {text}; ");
    }
    let _ = write!(out, "{}}}", name(b.result));
}

/// Appends a function, its lines indented by `depth` levels.
pub(crate) fn print_func(f: &Func, out: &mut String, depth: usize) {
    let pad = "  ".repeat(depth);
    let params: Vec<String> = f.params().iter().map(|(n, v)| format!("{v} {}: {}", quoted(n), f.ty(*v))).collect();
    let _ = writeln!(out, "func @{}({}) {{", quoted(&f.name), params.join(", "));
    for (_, n) in f.nodes() {
        let results: Vec<String> = n.results.iter().map(|v| format!("{v}: {}", f.ty(*v))).collect();
        let operands: Vec<String> = n.operands.iter().map(ToString::to_string).collect();
        let _ = write!(out, "{pad}  {} = {}({})", results.join(", "), n.op.mnemonic(), operands.join(", "));
        let attrs = n.op.attrs();
        if !attrs.is_empty() {
            out.push_str(" {");
            for (i, (name, value)) in attrs.into_iter().enumerate() {
                let _ = write!(out, "{}{name} = ", if i > 0 { ", " } else { "" });
                match &n.op {
                    Op::Fused(region) => print_func(&region.body, out, depth + 1),
                    _ => value.print(out),
                }
            }
            out.push('}');
        }
        if !n.loc.path().is_empty() {
            let _ = write!(out, " loc({})", quoted(n.loc.path()));
        }
        out.push('\n');
    }
    let results: Vec<String> = f.results().iter().map(|(n, v)| format!("{v} {}", quoted(n))).collect();
    let _ = write!(out, "{pad}  return {}\n{pad}}}", results.join(", "));
}

fn constant(data: &ConstData) -> String {
    let size = data.ty().dtype.size_bytes();
    if data.bytes().len() / size > INLINE_ELEMENTS {
        let hash = data.hash();
        return hash[..16].iter().fold(String::from("hash "), |s, b| s + &format!("{b:02x}"));
    }
    let values: Vec<String> = data
        .bytes()
        .chunks_exact(size)
        .map(|b| {
            let bits = b.iter().rev().fold(0u64, |a, x| a << 8 | u64::from(*x));
            literal(Literal { dtype: data.ty().dtype, bits })
        })
        .collect();
    format!("[{}]", values.join(", "))
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        let _ = writeln!(out, "module {} {{", quoted(&self.name));
        for (s, r) in &self.symbols {
            let _ = writeln!(out, "  dim {s} in {}..{}", r.min, r.max);
        }
        for (id, name, data) in self.consts.iter() {
            let _ = writeln!(out, "  const {id} {}: {} = {}", quoted(name), data.ty(), constant(data));
        }
        for (a, b, why) in &self.constraints {
            let _ = writeln!(out, "  require {a} == {b} {}", quoted(why));
        }
        out.push_str("  ");
        print_func(&self.main, &mut out, 1);
        out.push_str("\n}\n");
        f.write_str(&out)
    }
}
