//! The threads of one block in step.

use super::memory::{Buffer, Shadow};
use super::{LoopError, Place, ops};
use crate::loops::inst::{Inst, MatrixDot, MatrixInst, Packs, ReduceOp, TargetInst, Ty};
use crate::loops::kernel::{Access, Block, Buf, Kernel, Matrix, Reg, Space, Stmt};
use crate::scalar::BinOp;
use crate::types::DType;

type Result<T = ()> = std::result::Result<T, LoopError>;

/// Shares that the units of host code are cut into.
const SHARES: u32 = 3;

/// Largest scratch memory of a block in bytes.
const MAX_SCRATCH: usize = 1 << 32;

struct Local {
    buffer: Buffer,
    /// Elements per thread, or of the block.
    len: usize,
    shadow: Option<Shadow>,
}

pub(super) struct Machine<'a> {
    k: &'a Kernel,
    threads: usize,
    memory: &'a mut [Buffer],
    args: &'a [usize],
    /// Per parameter that is written.
    shadows: Vec<Option<Shadow>>,
    locals: Vec<Local>,
    /// Per register: the bits of each thread's lanes.
    regs: Vec<Vec<u64>>,
    vars: Vec<Vec<u64>>,
    /// Per matrix register, its bytes.
    matrices: Vec<Vec<u8>>,
    /// Units of the launch.
    extent: u32,
    unit: u32,
    /// Barriers passed.
    epoch: u32,
}

impl<'a> Machine<'a> {
    /// A machine for a kernel that verifies. Values that no thread changes are computed here.
    pub(super) fn new(k: &'a Kernel, syms: &[i64], memory: &'a mut [Buffer], args: &'a [usize]) -> Result<Self> {
        let bad = |what: String| Err(LoopError::Arguments(what));
        if syms.len() != k.syms.len() || args.len() != k.bufs.len() {
            let (n, m) = (k.syms.len(), k.bufs.len());
            return bad(format!("{} takes {n} symbols and {m} buffers, got {} and {}", k.name, syms.len(), args.len()));
        }
        for (i, (a, p)) in args.iter().zip(&k.bufs).enumerate() {
            if memory.get(*a).is_none_or(|b| b.data.len() % p.dtype.size_bytes() != 0) {
                return bad(format!("parameter b{i} of {} has no buffer of whole elements", k.name));
            }
            let same = args[..i].iter().zip(&k.bufs).find(|(b, q)| *b == a && [p.access, q.access] != [Access::Read; 2]);
            if same.is_some() {
                return bad(format!("parameter b{i} of {} overlaps another, and one is written", k.name));
            }
        }
        let env = |s: &crate::Symbol| k.syms.iter().position(|x| x == s).map(|i| syms[i]);
        let extent = k.extent.eval(&env)?;
        let Ok(extent) = u32::try_from(extent) else { return bad(format!("the extent of {} is {extent}", k.name)) };
        let threads = k.block.unwrap_or(1) as usize;
        let elements = |i: usize| memory[args[i]].data.len() / k.bufs[i].dtype.size_bytes();
        let shadow = |i: usize| (k.bufs[i].access != Access::Read).then(|| Shadow::new(elements(i)));
        let shadows = (0..args.len()).map(shadow).collect();
        let mut locals = Vec::with_capacity(k.locals.len());
        for l in &k.locals {
            let Ok(len) = usize::try_from(l.len.eval(&env)?) else { return bad(format!("scratch of {} elements", l.len)) };
            let shared = l.space == Space::Shared;
            let copies = if shared { 1 } else { threads };
            let bytes = len.checked_mul(copies).and_then(|n| n.checked_mul(l.dtype.size_bytes())).filter(|b| *b <= MAX_SCRATCH);
            let Some(bytes) = bytes else { return bad(format!("scratch of {} elements is too large", l.len)) };
            locals.push(Local { buffer: Buffer::undefined(bytes), len, shadow: shared.then(|| Shadow::new(len)) });
        }
        let fill = |ty: &Ty| vec![0; usize::from(ty.lanes) * threads];
        let (regs, vars) = (k.regs.iter().map(fill).collect(), k.vars.iter().map(fill).collect());
        let matrices = vec![vec![0; MatrixInst::ROWS * MatrixInst::ROW_BYTES]; k.matrices as usize];
        let mut m = Self { k, threads, memory, args, shadows, locals, regs, vars, matrices, extent, unit: 0, epoch: 0 };
        m.constants(&k.body, &env)?;
        Ok(m)
    }

    fn constants(&mut self, block: &Block, env: &dyn Fn(&crate::Symbol) -> Option<i64>) -> Result {
        for s in block {
            match s {
                Stmt::Let(r, inst) => {
                    let out = &mut self.regs[r.0 as usize];
                    match inst {
                        Inst::Const(l) => out.fill(l.bits),
                        Inst::Dim(d) => out.fill(d.eval(env)? as u64),
                        Inst::Thread => out.iter_mut().enumerate().for_each(|(i, o)| *o = i as u64),
                        Inst::Lanes(ty) => {
                            out.iter_mut().enumerate().for_each(|(i, o)| *o = i as u64 % u64::from(ty.lanes));
                        }
                        _ => {}
                    }
                }
                Stmt::For { body, .. } => self.constants(body, env)?,
                Stmt::If { then, els, .. } => {
                    self.constants(then, env)?;
                    self.constants(els, env)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All units: blocks one after the other, or a few shares of host code, the last first.
    pub(super) fn run(&mut self) -> Result {
        let k = self.k;
        let step = if k.block.is_some() { 1 } else { self.extent.div_ceil(SHARES).max(1) };
        for share in (0..self.extent.div_ceil(step)).rev() {
            let (lo, hi) = (share * step, self.extent.min((share + 1) * step));
            (self.unit, self.epoch) = (lo, self.epoch + 1);
            for l in &mut self.locals {
                l.buffer.forget();
                if let Some(s) = &mut l.shadow {
                    *s = Shadow::new(l.len);
                }
            }
            self.bounds(&k.body, lo, hi);
            let all = vec![true; self.threads];
            self.block(&k.body, &all)?;
        }
        Ok(())
    }

    fn bounds(&mut self, block: &Block, lo: u32, hi: u32) {
        for s in block {
            match s {
                Stmt::Let(r, Inst::Lo) => self.regs[r.0 as usize].fill(lo.into()),
                Stmt::Let(r, Inst::Hi) => self.regs[r.0 as usize].fill(hi.into()),
                Stmt::For { body, .. } => self.bounds(body, lo, hi),
                Stmt::If { then, els, .. } => {
                    self.bounds(then, lo, hi);
                    self.bounds(els, lo, hi);
                }
                _ => {}
            }
        }
    }

    fn reg(&self, r: Reg) -> &[u64] {
        &self.regs[r.0 as usize]
    }

    fn block(&mut self, block: &Block, on: &[bool]) -> Result {
        block.iter().try_for_each(|s| self.stmt(s, on))
    }

    fn stmt(&mut self, s: &Stmt, on: &[bool]) -> Result {
        match s {
            Stmt::Let(r, inst) => {
                let mut out = std::mem::take(&mut self.regs[r.0 as usize]);
                let done = self.inst(inst, &mut out, on);
                self.regs[r.0 as usize] = out;
                done
            }
            Stmt::Set(v, r) => {
                let (to, from) = (&mut self.vars[v.0 as usize], &self.regs[r.0 as usize]);
                let lanes = to.len() / self.threads;
                for ((to, from), on) in to.chunks_mut(lanes).zip(from.chunks(lanes)).zip(on) {
                    if *on {
                        to.copy_from_slice(from);
                    }
                }
                Ok(())
            }
            Stmt::Store { buf, index, value, count } => self.store(*buf, *index, *value, *count, on),
            Stmt::For { iv, lo, hi, step, body, .. } => {
                let mut at = self.reg(*lo).to_vec();
                let mut inside = on.to_vec();
                loop {
                    let end = self.reg(*hi);
                    for ((inside, at), end) in inside.iter_mut().zip(&at).zip(end) {
                        *inside &= (*at as i64) < *end as i64;
                    }
                    if !inside.contains(&true) {
                        return Ok(());
                    }
                    self.regs[iv.0 as usize].copy_from_slice(&at);
                    self.block(body, &inside)?;
                    for (a, inside) in at.iter_mut().zip(&mut inside) {
                        // A variable that would overflow has passed every end.
                        match (*a as i64).checked_add(*step) {
                            Some(next) => *a = next as u64,
                            None => *inside = false,
                        }
                    }
                }
            }
            Stmt::If { cond, then, els } => {
                for (block, want) in [(then, true), (els, false)] {
                    let mask: Vec<bool> = self.reg(*cond).iter().zip(on).map(|(c, on)| *on && (*c != 0) == want).collect();
                    if !block.is_empty() && mask.contains(&true) {
                        self.block(block, &mask)?;
                    }
                }
                Ok(())
            }
            Stmt::Fail(status) => Err(LoopError::Stopped(*status)),
            Stmt::Barrier => {
                let arrived = on.iter().filter(|on| **on).count();
                if arrived != self.threads {
                    return Err(LoopError::DivergentBarrier { unit: self.unit, arrived, threads: self.threads });
                }
                self.epoch += 1;
                Ok(())
            }
            Stmt::Matrix(inst) => self.matrix(*inst),
            Stmt::Prefetch { .. } => Ok(()),
        }
    }

    /// Host code is one thread.
    fn matrix(&mut self, inst: MatrixInst) -> Result {
        match inst {
            MatrixInst::Zero(m) => self.matrices[m.0 as usize].fill(0),
            MatrixInst::Load { matrix, buf, index, stride } => {
                let size = self.k.buf_dtype(buf).size_bytes();
                let mut elements = vec![0; MatrixInst::ROW_BYTES / size];
                for r in 0..MatrixInst::ROWS {
                    self.read(buf, self.row_of(index, stride, r), 0, &mut elements)?;
                    let bytes = elements.iter().flat_map(|e| e.to_le_bytes().into_iter().take(size));
                    let row = &mut self.matrices[matrix.0 as usize][r * MatrixInst::ROW_BYTES..][..MatrixInst::ROW_BYTES];
                    row.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
                }
            }
            MatrixInst::Store { matrix, buf, index, stride } => {
                let size = self.k.buf_dtype(buf).size_bytes();
                for r in 0..MatrixInst::ROWS {
                    let row = &self.matrices[matrix.0 as usize][r * MatrixInst::ROW_BYTES..][..MatrixInst::ROW_BYTES];
                    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
                    let elements: Vec<u64> = row.chunks(size).map(number).collect();
                    self.write(buf, self.row_of(index, stride, r), 0, &elements)?;
                }
            }
            MatrixInst::Dot { dot, acc, a, b } => {
                let words = |m: Matrix| -> Vec<u32> {
                    let bytes = &self.matrices[m.0 as usize];
                    bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
                };
                let (mut sums, a, b) = (words(acc), words(a), words(b));
                let n = MatrixInst::ROWS;
                for (sums, a) in sums.chunks_mut(n).zip(a.chunks(n)) {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let groups = a.iter().zip(b[j..].iter().step_by(n));
                        *sum = match dot {
                            MatrixDot::Bytes => ops::tdpbusd(*sum, groups),
                            MatrixDot::Bf16 => ops::tdpbf16ps(*sum, groups),
                        };
                    }
                }
                self.matrices[acc.0 as usize] = sums.into_iter().flat_map(u32::to_le_bytes).collect();
            }
        }
        Ok(())
    }

    /// The first element of row `r` of a matrix in memory.
    fn row_of(&self, index: Reg, stride: Reg, r: usize) -> i64 {
        let [index, stride] = [index, stride].map(|r| self.reg(r)[0] as i64);
        index.wrapping_add(stride.wrapping_mul(r as i64))
    }

    /// Computes an instruction into `out`, which is not among its operands.
    fn inst(&mut self, inst: &Inst, out: &mut [u64], on: &[bool]) -> Result {
        let ty = |r: &Reg| self.k.reg_ty(*r);
        let lanes_of = |r: &Reg| usize::from(self.k.reg_ty(*r).lanes);
        let lanes = out.len() / self.threads;
        match inst {
            // Set before the first statement.
            Inst::Const(_) | Inst::Dim(_) | Inst::Thread | Inst::Lanes(_) | Inst::Lo | Inst::Hi => {}
            Inst::Get(v) => out.copy_from_slice(&self.vars[v.0 as usize]),
            Inst::Load { buf, index, ty, count } => return self.load(*buf, *index, *ty, *count, out, on),
            Inst::Un(op, a) => ops::un(*op, ty(a).dtype, out, self.reg(*a)),
            Inst::Bin(op, a, b) => {
                let operands = (self.reg(*a), self.reg(*b));
                ops::bin(*op, ty(a).dtype, out, operands, |i| on[i / lanes])
                    .map_err(|i| LoopError::DivisionByZero(self.place(i / lanes)))?;
            }
            Inst::Fma(a, b, c) => ops::fma(ty(a).dtype, out, [a, b, c].map(|r| self.reg(*r))),
            Inst::Select(c, a, b) => {
                let per = lanes_of(c);
                let (c, a, b) = (self.reg(*c), self.reg(*a), self.reg(*b));
                for (i, o) in out.iter_mut().enumerate() {
                    let c = if per == lanes { c[i] } else { c[i / lanes] };
                    *o = if c != 0 { a[i] } else { b[i] };
                }
            }
            Inst::Cast(d, a) => ops::cast(ty(a).dtype, *d, out, self.reg(*a)),
            Inst::Bitcast(_, a) => out.copy_from_slice(self.reg(*a)),
            Inst::Splat(_, a) => {
                for (o, a) in out.chunks_mut(lanes).zip(self.reg(*a)) {
                    o.fill(*a);
                }
            }
            Inst::Extract(a, i) => {
                for (o, a) in out.iter_mut().zip(self.reg(*a).chunks(lanes_of(a))) {
                    *o = a[usize::from(*i)];
                }
            }
            Inst::Insert(a, i, x) => {
                out.copy_from_slice(self.reg(*a));
                for (o, x) in out.chunks_mut(lanes).zip(self.reg(*x)) {
                    o[usize::from(*i)] = *x;
                }
            }
            Inst::Shuffle(a, b, picks) => {
                let n = lanes_of(a);
                let (a, b) = (self.reg(*a), self.reg(*b));
                for (t, o) in out.chunks_mut(lanes).enumerate() {
                    for (o, p) in o.iter_mut().zip(picks) {
                        let p = usize::from(*p);
                        *o = if p < n { a[t * n + p] } else { b[t * n + p - n] };
                    }
                }
            }
            Inst::Reduce(op, a) => {
                let (n, d) = (lanes_of(a), ty(a).dtype);
                for (o, a) in out.iter_mut().zip(self.reg(*a).chunks(n)) {
                    *o = reduce(*op, d, a.to_vec());
                }
            }
            Inst::Target(TargetInst::VCvtNePs2Bf16, args) => ops::vcvtneps2bf16(out, self.reg(args[0])),
            Inst::Target(TargetInst::VCvtPs2Dq, args) => ops::vcvtps2dq(out, self.reg(args[0])),
            Inst::Target(t @ (TargetInst::VPackSsDw | TargetInst::VPackUsWb), args) => {
                let packs = if *t == TargetInst::VPackSsDw { Packs::WORDS } else { Packs::BYTES };
                let n = lanes_of(&args[0]);
                let picks = TargetInst::packed_lanes(ty(&args[0]));
                let operands = self.reg(args[0]).chunks(n).zip(self.reg(args[1]).chunks(n));
                for (o, (a, b)) in out.chunks_mut(lanes).zip(operands) {
                    for (o, p) in o.iter_mut().zip(&picks) {
                        let p = usize::from(*p);
                        *o = ops::saturated(packs, if p < n { a[p] } else { b[p - n] });
                    }
                }
            }
            Inst::Target(t, args) => {
                let [acc, a, b] = [0, 1, 2].map(|i| self.reg(args[i]));
                let n = a.len() / acc.len();
                for (i, o) in out.iter_mut().enumerate() {
                    let (x, y) = (&a[i * n..][..n], &b[i * n..][..n]);
                    *o = match t {
                        TargetInst::VpDpBusd => ops::vpdpbusd(acc[i], x, y),
                        TargetInst::VpDpWssd => ops::vpdpwssd(acc[i], x, y),
                        TargetInst::VDpBf16Ps => ops::vdpbf16ps(acc[i], x, y),
                        TargetInst::VCvtNePs2Bf16 | TargetInst::VCvtPs2Dq | TargetInst::VPackSsDw | TargetInst::VPackUsWb => *o,
                        TargetInst::VPermI2B => {
                            let lanes = lanes_of(&args[0]);
                            ops::vpermi2b(acc[i], [a, b].map(|t| &t[i / lanes * lanes..][..lanes]))
                        }
                    };
                }
            }
        }
        Ok(())
    }

    fn place(&self, thread: usize) -> Place {
        Place { unit: self.unit, thread: thread as u32 }
    }

    /// The part of an access that takes place: first element, number of elements, both inside the buffer.
    fn window(&self, buf: Buf, index: i64, n: usize, thread: usize) -> Result<usize> {
        let len = match buf {
            Buf::Param(i) => self.memory[self.args[i as usize]].data.len() / self.k.buf_dtype(buf).size_bytes(),
            Buf::Local(i) => self.locals[i as usize].len,
        };
        let first = usize::try_from(index).ok();
        match first.filter(|f| f.checked_add(n).is_some_and(|end| end <= len)) {
            Some(first) => Ok(first),
            None => {
                let outside = if index < 0 { index } else { index.max(len as i64) };
                Err(LoopError::OutOfBounds { buf, index: outside, len, at: self.place(thread) })
            }
        }
    }

    /// A buffer with its record, and where this thread's part of it starts.
    fn open(&mut self, buf: Buf, thread: usize) -> (&mut Buffer, Option<&mut Shadow>, usize) {
        match buf {
            Buf::Param(i) => (&mut self.memory[self.args[i as usize]], self.shadows[i as usize].as_mut(), 0),
            Buf::Local(i) => {
                let l = &mut self.locals[i as usize];
                let start = if l.shadow.is_some() { 0 } else { thread * l.len };
                (&mut l.buffer, l.shadow.as_mut(), start)
            }
        }
    }

    fn active(&self, count: Option<Reg>, lanes: usize, thread: usize) -> usize {
        count.map_or(lanes, |c| (self.reg(c)[thread] as i64).clamp(0, lanes as i64) as usize)
    }

    fn load(&mut self, buf: Buf, index: Reg, ty: Ty, count: Option<Reg>, out: &mut [u64], on: &[bool]) -> Result {
        let lanes = usize::from(ty.lanes);
        for t in (0..self.threads).filter(|t| on[*t]) {
            let n = self.active(count, lanes, t);
            let out = &mut out[t * lanes..][..lanes];
            out[n..].fill(0);
            self.read(buf, self.reg(index)[t] as i64, t, &mut out[..n])?;
            if ty.dtype == DType::Bool {
                out[..n].iter_mut().for_each(|o| *o = u64::from(*o != 0));
            }
        }
        Ok(())
    }

    /// Neighbouring elements as one thread reads them; of none nothing is touched.
    fn read(&mut self, buf: Buf, index: i64, thread: usize, out: &mut [u64]) -> Result {
        if out.is_empty() {
            return Ok(());
        }
        let first = self.window(buf, index, out.len(), thread)?;
        let (at, size, epoch) = (self.place(thread), self.k.buf_dtype(buf).size_bytes(), self.epoch);
        let (buffer, mut shadow, start) = self.open(buf, thread);
        for (l, o) in out.iter_mut().enumerate() {
            let index = first + l;
            if let Some(s) = &mut shadow {
                s.read(index, at, epoch).map_err(|first| LoopError::Race { buf, index, first, second: at })?;
            }
            *o = buffer.get(start + index, size).ok_or(LoopError::Undefined { buf, index, at })?;
        }
        Ok(())
    }

    fn store(&mut self, buf: Buf, index: Reg, value: Reg, count: Option<Reg>, on: &[bool]) -> Result {
        let lanes = usize::from(self.k.reg_ty(value).lanes);
        let values = self.reg(value).to_vec();
        for t in (0..self.threads).filter(|t| on[*t]) {
            let n = self.active(count, lanes, t);
            self.write(buf, self.reg(index)[t] as i64, t, &values[t * lanes..][..n])?;
        }
        Ok(())
    }

    /// Neighbouring elements as one thread writes them; of none nothing is touched.
    fn write(&mut self, buf: Buf, index: i64, thread: usize, values: &[u64]) -> Result {
        if values.is_empty() {
            return Ok(());
        }
        let first = self.window(buf, index, values.len(), thread)?;
        let (at, size, epoch) = (self.place(thread), self.k.buf_dtype(buf).size_bytes(), self.epoch);
        let (buffer, mut shadow, start) = self.open(buf, thread);
        for (l, bits) in values.iter().enumerate() {
            let index = first + l;
            if let Some(s) = &mut shadow {
                s.write(index, at, epoch).map_err(|first| LoopError::Race { buf, index, first, second: at })?;
            }
            buffer.set(start + index, size, *bits);
        }
        Ok(())
    }
}

/// Lane `i` with lane `i + n/2`, halving.
fn reduce(op: ReduceOp, d: DType, mut v: Vec<u64>) -> u64 {
    let op = match op {
        ReduceOp::Add => BinOp::Add,
        ReduceOp::Mul => BinOp::Mul,
        ReduceOp::Min => BinOp::Min,
        ReduceOp::Max => BinOp::Max,
    };
    while v.len() > 1 {
        let half = v.len() / 2;
        let mut out = vec![0; half];
        // None of these operations fails.
        let _ = ops::bin(op, d, &mut out, (&v[..half], &v[half..]), |_| false);
        v = out;
    }
    v.first().copied().unwrap_or(0)
}
