//! The parser.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Cursor, ParseError};
use crate::op::Op;
use crate::scalar::{BinOp, Body, Inst, Literal, Ref, UnOp};
use crate::tensor::{ConstData, ConstPool, Func, Loc, Module, Value};
use crate::types::{DType, Symbol, SymbolRange, TensorType};

/// Largest constant that the text may ask for by `splat` or `random`, in bytes.
const MAX_GENERATED: usize = 1 << 28;

/// Parses a module whose constants are all in the text.
///
/// # Errors
/// Text of another form, or a constant that is given by its hash only.
pub fn parse_module(text: &str) -> Result<Module, ParseError> {
    parse_module_with(text, &ConstPool::default())
}

/// Parses a module; constants given by hash are looked up in `store`.
///
/// # Errors
/// As [`parse_module`].
pub fn parse_module_with(text: &str, store: &ConstPool) -> Result<Module, ParseError> {
    let p = &mut Cursor::new(text);
    p.expect("module")?;
    let mut m = Module::new(&p.string()?);
    p.expect("{")?;
    let mut consts = ConstPool::default();
    loop {
        if p.eat("dim ") {
            p.skip_blank();
            let s = p.dim()?;
            let s = s.as_symbol().cloned().ok_or_else(|| p.error("expected a name"))?;
            p.expect("in")?;
            let min = p.number()?;
            p.expect("..")?;
            m.symbols.insert(Symbol::new(s.name()), SymbolRange { min, max: p.number()? });
        } else if p.eat("const ") {
            p.expect("@c")?;
            if p.number::<usize>()? != consts.len() {
                return Err(p.error("constants are numbered in order"));
            }
            let name = p.string()?;
            p.expect(":")?;
            let ty = tensor_type(p)?;
            p.expect("=")?;
            let data = constant(p, ty, store)?;
            consts.add(&name, data);
        } else if p.eat("require ") {
            let a = p.dim()?;
            p.expect("==")?;
            let b = p.dim()?;
            m.constraints.push((a, b, p.string()?));
        } else {
            break;
        }
    }
    m.consts = Arc::new(consts);
    m.main = parse_func(p)?;
    p.expect("}")?;
    if !p.at_end() {
        return Err(p.error("expected the end of the text"));
    }
    Ok(m)
}

fn tensor_type(p: &mut Cursor<'_>) -> Result<TensorType, ParseError> {
    let word = p.word();
    let dtype: DType = word.parse().map_err(|()| p.error(format!("`{word}` is not an element type")))?;
    Ok(TensorType::new(dtype, p.list(Cursor::dim)?))
}

fn literal(p: &mut Cursor<'_>, dtype: DType) -> Result<Literal, ParseError> {
    if dtype.is_float() {
        return p.float().map(|v| Literal::from_f64(dtype, v));
    }
    if dtype == DType::U64 {
        return p.number().map(|bits| Literal { dtype, bits });
    }
    p.number::<i64>().map(|v| Literal::from_i64(dtype, v))
}

fn constant(p: &mut Cursor<'_>, ty: TensorType, store: &ConstPool) -> Result<ConstData, ParseError> {
    if p.eat("hash ") {
        let want = p.word();
        let hit = store
            .iter()
            .map(|(_, _, d)| d)
            .find(|d| *d.ty() == ty && d.hash()[..16].iter().fold(String::new(), |s, b| s + &format!("{b:02x}")) == want);
        return hit.cloned().ok_or_else(|| p.error("the weights with this hash are not given"));
    }
    let size = ty.dtype.size_bytes();
    let count = ty.static_dims().and_then(|d| d.iter().try_fold(1usize, |a, d| a.checked_mul(usize::try_from(*d).ok()?)));
    let count = count.filter(|c| c.saturating_mul(size) <= MAX_GENERATED).ok_or_else(|| p.error("the constant is too large"))?;
    let mut bytes = Vec::new();
    let mut put = |l: Literal| bytes.extend_from_slice(&l.bits.to_le_bytes()[..size]);
    if p.eat("splat(") {
        let v = literal(p, ty.dtype)?;
        p.expect(")")?;
        (0..count).for_each(|_| put(v));
    } else if p.eat("random(") {
        let mut state = p.number::<u64>()?;
        p.expect(")")?;
        for _ in 0..count {
            put(random(&mut state, ty.dtype));
        }
    } else {
        for v in p.list(|p| literal(p, ty.dtype))? {
            put(v);
        }
    }
    ConstData::new(ty, bytes).ok_or_else(|| p.error("the number of elements does not fit the type"))
}

/// SplitMix64 (Steele et al. 2014): floats in [-1, 1), bytes over their whole range, other integers in -8..8 (unsigned 0..16).
fn random(state: &mut u64, dtype: DType) -> Literal {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    if dtype.is_float() {
        Literal::from_f64(dtype, (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
    } else if dtype.size_bytes() == 1 && dtype.is_int() {
        Literal { dtype, bits: z >> 56 }
    } else {
        let v = (z >> 60) as i64;
        Literal::from_i64(dtype, if dtype.is_signed_int() { v - 8 } else { v })
    }
}

/// Parses a function.
pub(crate) fn parse_func(p: &mut Cursor<'_>) -> Result<Func, ParseError> {
    p.expect("func")?;
    p.expect("@")?;
    let mut f = Func::new(&p.string()?);
    let mut values: BTreeMap<u32, Value> = BTreeMap::new();
    p.expect("(")?;
    if !p.eat(")") {
        loop {
            let v = value_number(p)?;
            let name = p.string()?;
            p.expect(":")?;
            let ty = tensor_type(p)?;
            values.insert(v, f.add_param(&name, ty));
            if p.eat(")") {
                break;
            }
            p.expect(",")?;
        }
    }
    p.expect("{")?;
    while !p.eat("return") {
        node(p, &mut f, &mut values)?;
    }
    while !p.eat("}") {
        let v = value(p, &values)?;
        f.add_result(&p.string()?, v);
        p.eat(",");
    }
    Ok(f)
}

fn value_number(p: &mut Cursor<'_>) -> Result<u32, ParseError> {
    p.expect("%")?;
    p.number()
}

fn value(p: &mut Cursor<'_>, values: &BTreeMap<u32, Value>) -> Result<Value, ParseError> {
    let n = value_number(p)?;
    values.get(&n).copied().ok_or_else(|| p.error(format!("%{n} is not defined before")))
}

fn node(p: &mut Cursor<'_>, f: &mut Func, values: &mut BTreeMap<u32, Value>) -> Result<(), ParseError> {
    let mut names = Vec::new();
    let mut types = Vec::new();
    loop {
        names.push(value_number(p)?);
        p.expect(":")?;
        types.push(tensor_type(p)?);
        if !p.eat(",") {
            break;
        }
    }
    p.expect("=")?;
    let mnemonic = p.word();
    p.expect("(")?;
    let mut operands = Vec::new();
    while !p.eat(")") {
        operands.push(value(p, values)?);
        p.eat(",");
    }
    let braces = p.eat("{");
    let op = Op::parse(mnemonic, p).ok_or_else(|| p.error(format!("there is no op `{mnemonic}`")))??;
    if braces {
        p.expect("}")?;
    }
    let loc = if p.eat("loc(") {
        let l = Loc::new(&p.string()?);
        p.expect(")")?;
        l
    } else {
        Loc::unknown()
    };
    let id = f.push_node(op, &operands, types, loc);
    for (n, v) in names.into_iter().zip(f.node(id).results.clone()) {
        values.insert(n, v);
    }
    Ok(())
}

/// Parses a scalar body.
pub(crate) fn parse_body(p: &mut Cursor<'_>) -> Result<Body, ParseError> {
    p.expect("{")?;
    let n_args: u32 = p.number()?;
    p.expect(":")?;
    let mut insts: Vec<Inst> = Vec::new();
    loop {
        let r = scalar_ref(p, n_args, insts.len())?;
        match r {
            Some(r) if p.eat("}") => return Ok(Body { n_args, insts, result: r }),
            None => {}
            Some(_) => return Err(p.error("expected `}`")),
        }
        p.expect("=")?;
        let word = p.word();
        let operand =
            |p: &mut Cursor<'_>| scalar_ref(p, n_args, insts.len())?.ok_or_else(|| p.error("the scalar is not defined before"));
        let inst = match word {
            "const" => {
                let d = p.word();
                let d: DType = d.parse().map_err(|()| p.error("expected an element type"))?;
                Inst::Const(literal(p, d)?)
            }
            "dim" => Inst::Dim(p.dim()?),
            "cast" => {
                let d = p.word();
                let d: DType = d.parse().map_err(|()| p.error("expected an element type"))?;
                Inst::Cast(d, operand(p)?)
            }
            "select" => Inst::Select(operand(p)?, operand(p)?, operand(p)?),
            w => match (UnOp::from_name(w), BinOp::from_name(w)) {
                (Some(op), _) => Inst::Un(op, operand(p)?),
                (_, Some(op)) => Inst::Bin(op, operand(p)?, operand(p)?),
                _ => return Err(p.error(format!("there is no scalar operation `{w}`"))),
            },
        };
        insts.push(inst);
        p.expect(";")?;
    }
}

/// `a0` or `i3`; `None` for the instruction that is about to be defined.
fn scalar_ref(p: &mut Cursor<'_>, n_args: u32, defined: usize) -> Result<Option<Ref>, ParseError> {
    let word = p.word();
    let number = |s: &str| s.parse::<u32>().ok();
    match (word.strip_prefix('a').and_then(number), word.strip_prefix('i').and_then(number)) {
        (Some(a), _) if a < n_args => Ok(Some(Ref::Arg(a))),
        (_, Some(i)) if (i as usize) < defined => Ok(Some(Ref::Inst(i))),
        (_, Some(i)) if i as usize == defined => Ok(None),
        _ => Err(p.error(format!("`{word}` is not a scalar of this body"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"module "tiny" {
  dim batch in 1..64
  dim "a b" in 0..9
  const @c0 "scale": f32[2] = [0.1, -inf]
  const @c1 "big": f32[100] = splat(1.5)
  require batch == 2*"a b"+1 "a \"reason\""
  func @"main"(%0 "x": f32[batch,2]) {
    %1: f32[2] = constant() {id = @c0}
    %2: f32[batch,2] = map(%0, %1) {body = {2: i0 = mul a0 a1; i1 = const f32 0.1; i2 = dim batch+1; i3 = cast f32 i2; i4 = add i0 i1; i5 = add i4 i3; i5}} loc("layer/Mul\n")
    %3: f32[batch,2] = softmax(%2) {axis = 1, log = false}
    return %3 "y"
  }
}
"#;

    #[test]
    fn text_survives_a_round_trip() {
        let m = parse_module(SAMPLE).expect("the sample is right");
        let printed = m.to_string();
        let again = parse_module_with(&printed, &m.consts).expect("what is printed can be read");
        assert_eq!(printed, again.to_string());
        assert!(printed.contains("i0 = mul a0 a1"));
    }

    #[test]
    fn no_text_panics() {
        for cut in 0..SAMPLE.len() {
            let _ = parse_module(&SAMPLE[..cut]);
            let mut bytes = SAMPLE.as_bytes().to_vec();
            for flip in [1u8, 4, 16, 64] {
                bytes[cut] ^= flip;
                if let Ok(text) = std::str::from_utf8(&bytes) {
                    let _ = parse_module(text);
                }
                bytes[cut] ^= flip;
            }
        }
    }

    #[test]
    fn errors_name_the_line() {
        let text = SAMPLE.replace("softmax", "softmix");
        let e = parse_module(&text).expect_err("no such op");
        assert_eq!((e.line, e.message.as_str()), (10, "there is no op `softmix`"));
    }
}
