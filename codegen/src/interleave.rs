//! Several turns of a loop side by side ([`Unroll::Interleave`]).
//!
//! A processor looks only some dozens of waiting instructions ahead. The turns of a loop with a long chain of dependent arithmetic, such as a polynomial,
//! hardly overlap then; mixed instruction by instruction they do.

use std::collections::HashMap;

use transc_ir::loops::{Block, Inst, Kernel, Reg, Stmt, Ty, Unroll};
use transc_ir::scalar::{BinOp, Literal};
use transc_ir::types::DType;

/// Rewrites the loops that ask for it and whose bodies are straight code; the others stay as they are.
pub fn interleave(kernel: &mut Kernel) {
    let body = std::mem::take(&mut kernel.body);
    kernel.body = Rewrite { regs: &mut kernel.regs }.block(body);
}

struct Rewrite<'a> {
    regs: &'a mut Vec<Ty>,
}

impl Rewrite<'_> {
    fn block(&mut self, block: Block) -> Block {
        let mut out = Vec::with_capacity(block.len());
        for stmt in block {
            match stmt {
                Stmt::For { iv, lo, hi, step, unroll: Unroll::Interleave(n), body } if n > 1 && straight(&body) => {
                    self.side_by_side((iv, lo, hi, step), n.into(), body, &mut out);
                }
                other => out.push(other.map_blocks(|b| self.block(b))),
            }
        }
        out
    }

    /// A loop of `n` turns at a time, and one for what is left.
    fn side_by_side(&mut self, (iv, lo, hi, step): (Reg, Reg, Reg, i64), n: i64, body: Block, out: &mut Block) {
        let stride = self.index(n * step, out);
        let len = self.bin(BinOp::Sub, hi, lo, out);
        let turns = self.bin(BinOp::Div, len, stride, out);
        let covered = self.bin(BinOp::Mul, turns, stride, out);
        let middle = self.bin(BinOp::Add, lo, covered, out);
        let first = self.new_reg(Ty::INDEX);
        let mut mixed = Vec::new();
        let mut names: Vec<HashMap<Reg, Reg>> = (0..n)
            .map(|j| {
                let by = self.index(j * step, &mut mixed);
                HashMap::from([(iv, self.bin(BinOp::Add, first, by, &mut mixed))])
            })
            .collect();
        for stmt in &body {
            for names in &mut names {
                let Some(copy) = self.renamed(stmt, names) else {
                    mixed.push(stmt.clone());
                    break;
                };
                mixed.push(copy);
            }
        }
        // The turns that are left need registers of their own for what all copies share.
        let mut names = HashMap::new();
        let rest = body
            .into_iter()
            .map(|mut stmt| {
                operands(&mut stmt, &names);
                self.define(&mut stmt, &mut names);
                stmt
            })
            .collect();
        out.push(Stmt::For { iv: first, lo, hi: middle, step: n * step, unroll: Unroll::Few, body: mixed });
        out.push(Stmt::For { iv, lo: middle, hi, step, unroll: Unroll::Few, body: rest });
    }

    /// A copy of a statement for one turn; `None` if it is the same in all turns.
    fn renamed(&mut self, stmt: &Stmt, names: &mut HashMap<Reg, Reg>) -> Option<Stmt> {
        let mut copy = stmt.clone();
        if !operands(&mut copy, names) && matches!(copy, Stmt::Let(..)) {
            return None;
        }
        self.define(&mut copy, names);
        Some(copy)
    }

    /// Gives what a statement defines a register of its own.
    fn define(&mut self, stmt: &mut Stmt, names: &mut HashMap<Reg, Reg>) {
        if let Stmt::Let(r, _) = stmt {
            let new = self.new_reg(self.regs[r.0 as usize]);
            names.insert(*r, new);
            *r = new;
        }
    }

    fn new_reg(&mut self, ty: Ty) -> Reg {
        self.regs.push(ty);
        Reg((self.regs.len() - 1) as u32)
    }

    fn index(&mut self, v: i64, out: &mut Block) -> Reg {
        let r = self.new_reg(Ty::INDEX);
        out.push(Stmt::Let(r, Inst::Const(Literal::from_i64(DType::I64, v))));
        r
    }

    fn bin(&mut self, op: BinOp, a: Reg, b: Reg, out: &mut Block) -> Reg {
        let r = self.new_reg(Ty::INDEX);
        out.push(Stmt::Let(r, Inst::Bin(op, a, b)));
        r
    }
}

/// True if every statement defines a register, stores or prefetches.
fn straight(body: &Block) -> bool {
    body.iter().all(|s| matches!(s, Stmt::Let(..) | Stmt::Store { .. } | Stmt::Prefetch { .. }))
}

/// Renames what a statement reads; true if there was any.
fn operands(stmt: &mut Stmt, names: &HashMap<Reg, Reg>) -> bool {
    let regs = match stmt {
        Stmt::Let(_, inst) => inst.operands_mut(),
        Stmt::Store { index, value, count, .. } => [index, value].into_iter().chain(count).collect(),
        Stmt::Prefetch { index, .. } => vec![index],
        _ => Vec::new(),
    };
    let mut changed = false;
    for r in regs {
        if let Some(new) = names.get(r) {
            *r = *new;
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use transc_ir::loops::{Access, KernelBuilder};
    use transc_ir::types::Dim;

    use super::*;

    /// `y[i] = x[i] * x[i] + 1` in steps of 2, with a constant inside the loop.
    fn kernel(n: u8) -> Kernel {
        let mut kb = KernelBuilder::new("k", Vec::new(), Dim::from(1));
        let (x, y) = (kb.param("x", DType::F32, Access::Read), kb.param("y", DType::F32, Access::Write));
        let (lo, hi) = (kb.index(0), kb.index(22));
        kb.for_(lo, hi, 2, Unroll::Interleave(n), |kb, i| {
            let v = kb.load(x, i, 2);
            let one = kb.num(Ty::vector(DType::F32, 2), 1.0);
            let v = kb.fma(v, v, one);
            kb.store(y, i, v);
        });
        let mut k = kb.finish();
        interleave(&mut k);
        k
    }

    #[test]
    fn turns_are_mixed_instruction_by_instruction() {
        insta::assert_snapshot!(kernel(2).to_string());
    }

    #[test]
    fn one_turn_at_a_time_stays_a_loop() {
        let kernel = kernel(1);
        let Some(Stmt::For { body, .. }) = kernel.body.last() else { panic!("no loop") };
        assert!(straight(body));
    }
}
