//! `algebra`: element-wise identities that keep every bit. Uniform operands move into bodies as literals.

use transc_ir::Module;
use transc_ir::Value;
use transc_ir::interp::scalar;
use transc_ir::op::{Broadcast, Map, Op, TypeError};
use transc_ir::scalar::{BinOp, Body, Inst, Literal, Ref, UnOp};
use transc_ir::tensor::rewrite::rewrite;
use transc_ir::tensor::{Builder, ConstData};
use transc_ir::types::{DType, Dim, TensorType};

use super::sweep;
use crate::context::PassCx;
use crate::error::PassError;

/// Runs the pass.
///
/// # Errors
/// Only for a bug in the pass.
pub fn run(module: &mut Module, cx: &mut PassCx) -> Result<(), PassError> {
    let rewritten = rewrite(module.take_main(), &mut module.consts, |b, _, node, operands| {
        let Op::Map(m) = &node.op else { return Ok(None) };
        if operands.is_empty() {
            return Ok(None);
        }
        let types: Vec<&TensorType> = operands.iter().map(|v| b.ty(*v)).collect();
        let want = node.op.infer(&types, b.consts)?.remove(0);
        let (body, operands) = with_literals(b, &m.body, operands, &want.dims, cx);
        let types: Vec<DType> = operands.iter().map(|v| b.ty(*v).dtype).collect();
        let body = simplify(&body, &types, cx);
        let (body, operands) = without_unused(b, body, operands, &want.dims);
        emit(b, body, &operands, &want).map(|v| Some(vec![v]))
    });
    module.main = sweep::typed(cx, rewritten)?;
    Ok(())
}

/// The map, or what it is if its body does nothing.
fn emit(b: &mut Builder<'_>, body: Body, operands: &[Value], want: &TensorType) -> Result<Value, TypeError> {
    if body.insts.is_empty()
        && let (Ref::Arg(a), true) = (body.result, operands.len() == 1)
    {
        let v = operands[a as usize];
        return if b.ty(v).dims == want.dims { Ok(v) } else { b.add(Broadcast { dims: want.dims.clone() }, &[v]) };
    }
    b.add(Map { body }, operands)
}

/// The dims that operands broadcast to.
fn joined(b: &Builder<'_>, operands: &[Value]) -> Option<Vec<Dim>> {
    operands.iter().try_fold(Vec::new(), |d, v| transc_ir::op::broadcast_dims(&d, &b.ty(*v).dims))
}

/// Replaces uniform operands by literals where the other operands alone have the dims of the result.
fn with_literals(b: &Builder<'_>, body: &Body, operands: &[Value], dims: &[Dim], cx: &mut PassCx) -> (Body, Vec<Value>) {
    let mut kept: Vec<Value> = operands.to_vec();
    let mut literals: Vec<Option<Body>> = vec![None; operands.len()];
    for (i, v) in operands.iter().enumerate() {
        let Some(literal) = uniform(b, *v) else { continue };
        let rest: Vec<Value> = (0..operands.len()).filter(|j| *j != i && literals[*j].is_none()).map(|j| operands[j]).collect();
        if !rest.is_empty() && joined(b, &rest).as_deref() == Some(dims) {
            cx.fired("literal-operand");
            literals[i] = Some(literal);
            kept = rest;
        }
    }
    if literals.iter().all(Option::is_none) {
        return (body.clone(), kept);
    }
    let mut out = Body::builder(kept.len() as u32);
    let mut next = 0;
    let args: Vec<Ref> = literals
        .iter()
        .map(|l| match l {
            Some(l) => out.inline(l, &[]),
            None => {
                next += 1;
                Ref::Arg(next - 1)
            }
        })
        .collect();
    let result = out.inline(body, &args);
    (out.finish(result), kept)
}

/// The body of a value all of whose elements are the same.
fn uniform(b: &Builder<'_>, v: Value) -> Option<Body> {
    match &b.func.def_node(v)?.op {
        Op::Constant(c) => splat(b.consts.get(c.id)?).map(Body::constant),
        Op::Map(m) if m.body.n_args == 0 => Some(m.body.clone()),
        _ => None,
    }
}

fn splat(data: &ConstData) -> Option<Literal> {
    let (dtype, bytes) = (data.ty().dtype, data.bytes());
    let mut elements = bytes.chunks_exact(dtype.size_bytes());
    let first = elements.next()?;
    elements.all(|e| e == first).then(|| {
        let mut bits = [0; 8];
        bits[..first.len()].copy_from_slice(first);
        Literal { dtype, bits: u64::from_le_bytes(bits) }
    })
}

/// Drops operands that the body does not read, where the dims stay.
fn without_unused(b: &Builder<'_>, body: Body, operands: Vec<Value>, dims: &[Dim]) -> (Body, Vec<Value>) {
    let mut used = vec![false; operands.len()];
    let mut mark = |r: Ref| {
        if let Ref::Arg(a) = r {
            used[a as usize] = true;
        }
        r
    };
    body.insts.iter().for_each(|i| {
        i.map_refs(&mut mark);
    });
    mark(body.result);
    let kept: Vec<Value> = operands.iter().zip(&used).filter(|(_, u)| **u).map(|(v, _)| *v).collect();
    if kept.len() == operands.len() || kept.is_empty() || joined(b, &kept).as_deref() != Some(dims) {
        return (body, operands);
    }
    let mut next = 0;
    let args: Vec<Ref> = used
        .iter()
        .map(|u| {
            next += u32::from(*u);
            Ref::Arg(next.saturating_sub(1))
        })
        .collect();
    let mut out = Body::builder(kept.len() as u32);
    let result = out.inline(&body, &args);
    (out.finish(result), kept)
}

/// Copies a body instruction by instruction, each replaced by an equal simpler one, and drops what the result does not need.
fn simplify(body: &Body, args: &[DType], cx: &mut PassCx) -> Body {
    let Ok(types) = body.infer(args) else { return body.clone() };
    let mut out = Body::builder(body.n_args);
    let mut map: Vec<Ref> = Vec::with_capacity(body.insts.len());
    let mut insts: Vec<Inst> = Vec::new();
    for (i, inst) in body.insts.iter().enumerate() {
        let inst = inst.map_refs(|r| match r {
            Ref::Arg(_) => r,
            Ref::Inst(j) => map[j as usize],
        });
        let new = match identity(&inst, types[i], &insts, args) {
            Some(Simpler::Ref(r)) => {
                cx.fired("identity");
                r
            }
            Some(Simpler::Inst(s)) => {
                cx.fired("scalar-rule");
                out.push(s)
            }
            None => out.push(inst),
        };
        map.push(new);
        insts = out.clone().finish(Ref::Arg(0)).insts;
    }
    let result = match body.result {
        Ref::Arg(_) => body.result,
        Ref::Inst(i) => map[i as usize],
    };
    live(&out.finish(result))
}

/// The body without instructions that its result does not need.
fn live(body: &Body) -> Body {
    let mut needed = vec![false; body.insts.len()];
    let mark = |r: Ref, needed: &mut Vec<bool>| {
        if let Ref::Inst(i) = r {
            needed[i as usize] = true;
        }
        r
    };
    mark(body.result, &mut needed);
    for (i, inst) in body.insts.iter().enumerate().rev() {
        if needed[i] {
            inst.map_refs(|r| mark(r, &mut needed));
        }
    }
    let mut out = Body::builder(body.n_args);
    let mut map: Vec<Ref> = Vec::with_capacity(body.insts.len());
    let at = |r: Ref, map: &[Ref]| match r {
        Ref::Arg(_) => r,
        Ref::Inst(j) => map[j as usize],
    };
    for (inst, needed) in body.insts.iter().zip(&needed) {
        // An instruction that nothing needs has no reference to it either.
        let new = if *needed { out.push(inst.map_refs(|r| at(r, &map))) } else { Ref::Arg(0) };
        map.push(new);
    }
    let result = at(body.result, &map);
    out.finish(result)
}

enum Simpler {
    Ref(Ref),
    Inst(Inst),
}

/// What an instruction of type `ty` is equal to, bit by bit.
fn identity(inst: &Inst, ty: DType, insts: &[Inst], args: &[DType]) -> Option<Simpler> {
    let def = |r: Ref| match r {
        Ref::Inst(i) => insts.get(i as usize),
        Ref::Arg(_) => None,
    };
    let lit = |r: Ref| match def(r) {
        Some(Inst::Const(l)) => Some(*l),
        _ => None,
    };
    let constant = |l: Literal| Some(Simpler::Inst(Inst::Const(l)));
    match *inst {
        Inst::Un(op, a) => match (op, def(a)) {
            (_, Some(Inst::Const(l))) => constant(scalar::un(op, *l)),
            (UnOp::Neg, Some(Inst::Un(UnOp::Neg, x))) | (UnOp::Not, Some(Inst::Un(UnOp::Not, x))) => Some(Simpler::Ref(*x)),
            (UnOp::Abs, Some(Inst::Un(UnOp::Abs, _))) => Some(Simpler::Ref(a)),
            _ => None,
        },
        Inst::Cast(to, a) => match (lit(a), a) {
            (Some(l), _) => constant(scalar::cast(to, l)),
            (None, Ref::Arg(i)) if args.get(i as usize) == Some(&to) => Some(Simpler::Ref(a)),
            _ => None,
        },
        Inst::Select(c, a, b) => match lit(c) {
            Some(l) => Some(Simpler::Ref(if l.bits != 0 { a } else { b })),
            None if a == b => Some(Simpler::Ref(a)),
            None => None,
        },
        Inst::Bin(op, a, b) => match (lit(a), lit(b)) {
            (Some(x), Some(y)) => scalar::bin(op, x, y).ok().and_then(constant),
            (None, Some(y)) => with_literal(op, a, y, ty),
            (Some(x), None) if matches!(op, BinOp::Add | BinOp::Mul | BinOp::And | BinOp::Or) => with_literal(op, b, x, ty),
            _ => None,
        },
        Inst::Const(_) | Inst::Dim(_) => None,
    }
}

/// `x op y` for a literal `y`.
fn with_literal(op: BinOp, x: Ref, y: Literal, ty: DType) -> Option<Simpler> {
    let v = y.to_f64();
    let same = match op {
        BinOp::Mul | BinOp::Div => v == 1.0,
        // Adding +0 would turn -0 into +0.
        BinOp::Add if ty.is_float() => v == 0.0 && v.is_sign_negative(),
        BinOp::Sub if ty.is_float() => v == 0.0 && v.is_sign_positive(),
        BinOp::Add | BinOp::Sub => y.bits == 0,
        BinOp::Pow => v == 1.0,
        BinOp::And if ty == DType::Bool => y.bits != 0,
        BinOp::Or => y.bits == 0,
        _ => false,
    };
    if same {
        return Some(Simpler::Ref(x));
    }
    // The square of an f32 is exact in the f64 in which the power is taken.
    let square = op == BinOp::Pow && v == 2.0 && ty.is_float() && ty != DType::F64;
    square.then_some(Simpler::Inst(Inst::Bin(BinOp::Mul, x, x)))
}
