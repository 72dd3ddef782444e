//! The text of kernels, for people: `--emit loops`.

use std::fmt::{self, Write as _};

use super::inst::Inst;
use super::kernel::{Block, Buf, Kernel, Space, Stmt, Unroll};

impl fmt::Display for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Buf::Param(i) => write!(f, "b{i}"),
            Buf::Local(i) => write!(f, "l{i}"),
        }
    }
}

impl fmt::Display for Inst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |c: &Option<super::Reg>| c.map_or_else(String::new, |c| format!(" count {c}"));
        match self {
            Inst::Const(l) if l.dtype.is_float() => write!(f, "const {} {:?}", l.dtype, l.to_f64()),
            Inst::Const(l) => write!(f, "const {} {}", l.dtype, l.to_i64()),
            Inst::Dim(d) => write!(f, "dim {d}"),
            Inst::Lo => f.write_str("lo"),
            Inst::Hi => f.write_str("hi"),
            Inst::Thread => f.write_str("thread"),
            Inst::Get(v) => write!(f, "get {v}"),
            Inst::Load { buf, index, count, .. } => write!(f, "load {buf}[{index}]{}", counted(count)),
            Inst::Un(op, a) => write!(f, "{} {a}", op.name()),
            Inst::Bin(op, a, b) => write!(f, "{} {a} {b}", op.name()),
            Inst::Fma(a, b, c) => write!(f, "fma {a} {b} {c}"),
            Inst::Select(c, a, b) => write!(f, "select {c} {a} {b}"),
            Inst::Cast(d, a) => write!(f, "cast {d} {a}"),
            Inst::Bitcast(d, a) => write!(f, "bitcast {d} {a}"),
            Inst::Splat(n, a) => write!(f, "splat {n} {a}"),
            Inst::Lanes(_) => f.write_str("lanes"),
            Inst::Extract(a, i) => write!(f, "extract {a} {i}"),
            Inst::Insert(a, i, x) => write!(f, "insert {a} {i} {x}"),
            Inst::Shuffle(a, b, lanes) => write!(f, "shuffle {a} {b} {lanes:?}"),
            Inst::Reduce(op, a) => write!(f, "reduce {} {a}", op.name()),
            Inst::Target(t, args) => write!(f, "{} {args:?}", t.name()),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bufs: Vec<String> = self
            .bufs
            .iter()
            .enumerate()
            .map(|(i, b)| format!("b{i}: {:?} {} {}", b.access, b.dtype, b.name).to_lowercase())
            .collect();
        let block = self.block.map_or_else(String::new, |n| format!(" block {n}"));
        writeln!(f, "kernel {}({}) extent {}{block} {{", self.name, bufs.join(", "), self.extent)?;
        for (i, l) in self.locals.iter().enumerate() {
            writeln!(f, "  {} l{i}: {}[{}]", if l.space == Space::Shared { "shared" } else { "local" }, l.dtype, l.len)?;
        }
        let mut out = String::new();
        self.print_block(&self.body, 1, &mut out);
        writeln!(f, "{out}}}")
    }
}

impl Kernel {
    fn print_block(&self, block: &Block, depth: usize, out: &mut String) {
        let pad = "  ".repeat(depth);
        for s in block {
            let _ = match s {
                Stmt::Let(r, inst) => writeln!(out, "{pad}{r}: {} = {inst}", self.reg_ty(*r)),
                Stmt::Set(v, r) => writeln!(out, "{pad}set {v} {r}"),
                Stmt::Store { buf, index, value, count } => {
                    let count = count.map_or_else(String::new, |c| format!(" count {c}"));
                    writeln!(out, "{pad}store {buf}[{index}] {value}{count}")
                }
                Stmt::For { iv, lo, hi, step, unroll, body } => {
                    let hint = if *unroll == Unroll::Auto { String::new() } else { format!(" unroll {unroll:?}").to_lowercase() };
                    let _ = writeln!(out, "{pad}for {iv} in {lo}..{hi} step {step}{hint} {{");
                    self.print_block(body, depth + 1, out);
                    writeln!(out, "{pad}}}")
                }
                Stmt::If { cond, then, els } => {
                    let _ = writeln!(out, "{pad}if {cond} {{");
                    self.print_block(then, depth + 1, out);
                    if !els.is_empty() {
                        let _ = writeln!(out, "{pad}}} else {{");
                        self.print_block(els, depth + 1, out);
                    }
                    writeln!(out, "{pad}}}")
                }
                Stmt::Fail(status) => writeln!(out, "{pad}fail {status:?}"),
                Stmt::Barrier => writeln!(out, "{pad}barrier"),
                Stmt::Matrix(inst) => writeln!(out, "{pad}matrix {inst}"),
                Stmt::Prefetch { buf, index } => writeln!(out, "{pad}prefetch {buf}[{index}]"),
            };
        }
    }
}
