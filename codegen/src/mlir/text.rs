//! Lines of MLIR with fresh names, and how types and numbers are spelt.

use std::fmt::Write as _;

use transc_ir::loops::Ty;
use transc_ir::scalar::Literal;
use transc_ir::types::DType;

/// Text under construction. Names are unique in a function, so regions need no scopes of their own.
pub(super) struct Text {
    pub(super) out: String,
    pub(super) depth: usize,
    next: u32,
    /// True where a `bf16` travels as its bits. LLVM's x86 backend promotes one that stays in a register to `f32`, and calls a function of the C library
    /// to come back.
    bits: bool,
}

impl Text {
    pub(super) fn new(depth: usize) -> Self {
        Self { out: String::new(), depth, next: 0, bits: false }
    }

    /// The text of a kernel, where a `bf16` travels as its bits.
    pub(super) fn of_kernel(depth: usize) -> Self {
        Self { bits: true, ..Self::new(depth) }
    }

    /// True for a `bf16` that travels as its bits.
    pub(super) fn is_bits(&self, d: DType) -> bool {
        self.bits && d == DType::Bf16
    }

    /// The type of a scalar or a short vector.
    pub(super) fn reg_type(&self, ty: Ty) -> String {
        vector_of(scalar_type(if self.is_bits(ty.dtype) { DType::U16 } else { ty.dtype }), ty.lanes)
    }

    /// A fresh name.
    pub(super) fn name(&mut self) -> String {
        self.next += 1;
        format!("%{}", self.next - 1)
    }

    /// Goes on with the names of another text of the same function.
    pub(super) fn take_names(&mut self, other: &Text) {
        self.next = other.next;
    }

    /// Appends a line.
    pub(super) fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{:1$}{text}", "", self.depth * 2);
    }

    /// Appends a line after which the text is indented.
    pub(super) fn open(&mut self, text: &str) {
        self.line(text);
        self.depth += 1;
    }

    /// Appends a line that ends the indentation.
    pub(super) fn close(&mut self, text: &str) {
        self.depth -= 1;
        self.line(text);
    }

    /// A line between two indented parts.
    pub(super) fn reopen(&mut self, text: &str) {
        self.close(text);
        self.depth += 1;
    }

    /// Defines a fresh name.
    pub(super) fn def(&mut self, text: &str) -> String {
        let name = self.name();
        self.line(&format!("{name} = {text}"));
        name
    }

    /// A constant of a scalar or vector type.
    pub(super) fn constant(&mut self, lanes: u16, v: Literal) -> String {
        let v = if self.is_bits(v.dtype) { Literal { dtype: DType::U16, ..v } } else { v };
        let (n, ty) = (number(v), self.reg_type(Ty::vector(v.dtype, lanes)));
        self.def(&match (lanes, v.dtype) {
            // `true` and `false` carry their type.
            (1, DType::Bool) => format!("arith.constant {n}"),
            (1, _) => format!("arith.constant {n} : {ty}"),
            _ => format!("arith.constant dense<{n}> : {ty}"),
        })
    }

    /// A value as an `index`.
    pub(super) fn index_of(&mut self, v: &str, from: &str) -> String {
        self.def(&format!("arith.index_cast {v} : {from} to index"))
    }
}

/// The element type; integers have no sign in MLIR, their operations have.
pub(super) fn scalar_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::U8 | DType::I8 => "i8",
        DType::U16 | DType::I16 => "i16",
        DType::U32 | DType::I32 => "i32",
        DType::U64 | DType::I64 => "i64",
        DType::Bool => "i1",
    }
}

pub(super) fn vector_of(scalar: &str, lanes: u16) -> String {
    if lanes == 1 { scalar.into() } else { format!("vector<{lanes}x{scalar}>") }
}

/// A number such that parsing it gives the same bits.
pub(super) fn number(l: Literal) -> String {
    if l.dtype.is_float() {
        let v = l.to_f64();
        if !v.is_finite() {
            return format!("0x{:0width$X}", l.bits, width = l.dtype.size_bytes() * 2);
        }
        // Every narrower float is a double; MLIR wants a point in the mantissa.
        let text = format!("{v:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let point = if mantissa.contains('.') { "" } else { ".0" };
        let tail = if exponent == "0" { String::new() } else { format!("e{exponent}") };
        return format!("{mantissa}{point}{tail}");
    }
    match l.dtype {
        DType::Bool => if l.bits != 0 { "true" } else { "false" }.into(),
        // Without a sign, large unsigned numbers are spelt as their signed twins.
        DType::U8 => (l.bits as i8).to_string(),
        DType::U16 => (l.bits as i16).to_string(),
        DType::U32 => (l.bits as i32).to_string(),
        DType::U64 => (l.bits as i64).to_string(),
        _ => l.to_i64().to_string(),
    }
}

/// A name from a model file as a location's string.
pub(super) fn quoted(name: &str) -> String {
    let mut out = String::from("\"");
    for c in name.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\{:02X}", c as u32 & 0xff);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
