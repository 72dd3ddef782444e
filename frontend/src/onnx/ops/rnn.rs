//! Recurrent layers, unrolled over a sequence of known length.

use transc_ir::scalar::{BinOp, UnOp};
use transc_ir::{Dim, Value};

use super::super::cx::OpCx;
use super::super::error::{Result, invalid, limit, too_symbolic, unsupported};
use super::{LAST, OpRow, row};

pub(super) static ROWS: &[OpRow] = &[
    row("GRU", 7..=LAST, |cx| layer(cx, &GRU)),
    row("LSTM", 7..=LAST, |cx| layer(cx, &LSTM)),
    row("RNN", 7..=LAST, |cx| layer(cx, &RNN)),
];

/// Longest sequence that is unrolled.
const MAX_STEPS: i64 = 512;

/// One kind of recurrent layer.
struct Cell {
    /// Gates, whose weights stand one below the other.
    gates: i64,
    /// The activations that its definition has, for one direction.
    activations: &'static [&'static str],
    /// States beside the output: 1 for the cell of an LSTM.
    cells: usize,
    /// The next output and cell from the projected input, the projected output, and the state.
    step: fn(&mut OpCx<'_, '_>, Step) -> Result<State>,
}

/// Output `[B, H]`, and the cell of an LSTM.
#[derive(Clone, Copy)]
struct State {
    h: Value,
    c: Option<Value>,
}

/// What one step sees; the projections are `[B, gates * H]`.
struct Step {
    x: Value,
    h: Value,
    bias: Option<Value>,
    state: State,
    size: i64,
    reset_after: bool,
    recurrence: Value,
}

static RNN: Cell = Cell { gates: 1, activations: &["Tanh"], cells: 0, step: rnn_step };
static GRU: Cell = Cell { gates: 3, activations: &["Sigmoid", "Tanh"], cells: 0, step: gru_step };
static LSTM: Cell = Cell { gates: 4, activations: &["Sigmoid", "Tanh", "Tanh"], cells: 1, step: lstm_step };

/// Part `i` of the last axis, `size` wide.
fn gate(cx: &mut OpCx<'_, '_>, x: Value, i: i64, size: i64) -> Result<Value> {
    let axis = cx.rank(x) - 1;
    cx.slice(x, axis, &Dim::from(i * size), &Dim::from(size), 1)
}

fn biased(cx: &mut OpCx<'_, '_>, x: Value, bias: Option<Value>) -> Result<Value> {
    match bias {
        Some(b) => cx.bin(BinOp::Add, x, b),
        None => Ok(x),
    }
}

fn rnn_step(cx: &mut OpCx<'_, '_>, s: Step) -> Result<State> {
    let h = biased(cx, s.h, s.bias)?;
    let y = cx.bin(BinOp::Add, s.x, h)?;
    Ok(State { h: cx.un(UnOp::Tanh, y)?, c: None })
}

/// Gates update, reset, candidate.
fn gru_step(cx: &mut OpCx<'_, '_>, s: Step) -> Result<State> {
    let h = biased(cx, s.h, s.bias)?;
    let mut gates = Vec::new();
    for i in 0..2 {
        let (x, h) = (gate(cx, s.x, i, s.size)?, gate(cx, h, i, s.size)?);
        let sum = cx.bin(BinOp::Add, x, h)?;
        gates.push(cx.un(UnOp::Sigmoid, sum)?);
    }
    let (update, reset) = (gates[0], gates[1]);
    let x = gate(cx, s.x, 2, s.size)?;
    let past = if s.reset_after {
        let h = gate(cx, h, 2, s.size)?;
        cx.bin(BinOp::Mul, reset, h)?
    } else {
        let kept = cx.bin(BinOp::Mul, reset, s.state.h)?;
        let r = gate(cx, s.recurrence, 2, s.size)?;
        let h = cx.mat_mul(kept, r, cx.dtype(kept))?;
        let bias = match s.bias {
            Some(b) => Some(gate(cx, b, 2, s.size)?),
            None => None,
        };
        biased(cx, h, bias)?
    };
    let candidate = cx.bin(BinOp::Add, x, past)?;
    let candidate = cx.un(UnOp::Tanh, candidate)?;
    // `(1 - z) n + z h` as `n + z (h - n)`.
    let step = cx.bin(BinOp::Sub, s.state.h, candidate)?;
    let step = cx.bin(BinOp::Mul, update, step)?;
    Ok(State { h: cx.bin(BinOp::Add, candidate, step)?, c: None })
}

/// Gates input, output, forget, cell.
fn lstm_step(cx: &mut OpCx<'_, '_>, s: Step) -> Result<State> {
    let Some(cell) = s.state.c else { return invalid("has no cell") };
    let h = biased(cx, s.h, s.bias)?;
    let sum = cx.bin(BinOp::Add, s.x, h)?;
    let mut gates = Vec::new();
    for i in 0..4 {
        let g = gate(cx, sum, i, s.size)?;
        gates.push(cx.un(if i == 3 { UnOp::Tanh } else { UnOp::Sigmoid }, g)?);
    }
    let kept = cx.bin(BinOp::Mul, gates[2], cell)?;
    let new = cx.bin(BinOp::Mul, gates[0], gates[3])?;
    let c = cx.bin(BinOp::Add, kept, new)?;
    let t = cx.un(UnOp::Tanh, c)?;
    Ok(State { h: cx.bin(BinOp::Mul, gates[1], t)?, c: Some(c) })
}

/// Row `i` of the first axis, without that axis.
fn at(cx: &mut OpCx<'_, '_>, x: Value, i: i64) -> Result<Value> {
    let y = cx.slice(x, 0, &Dim::from(i), &Dim::from(1), 1)?;
    let dims = cx.dims(y)[1..].to_vec();
    cx.reshape(y, dims)
}

fn optional_at(cx: &mut OpCx<'_, '_>, x: Option<Value>, i: i64) -> Result<Option<Value>> {
    match x {
        Some(x) => Ok(Some(at(cx, x, i)?)),
        None => Ok(None),
    }
}

/// Operands: sequence `[S, B, I]`, weights `[D, gates * H, I]` and `[D, gates * H, H]`, biases of both `[D, 2 * gates * H]`, lengths, first output
/// and first cell `[D, B, H]`.
fn layer(cx: &mut OpCx<'_, '_>, cell: &Cell) -> Result<Vec<Value>> {
    let (x, w, r) = (cx.x(0)?, cx.x(1)?, cx.x(2)?);
    if cx.rank(x) != 3 || cx.rank(w) != 3 || cx.rank(r) != 3 {
        return invalid(format!("needs operands of three axes, got {}, {} and {}", cx.ty(x), cx.ty(w), cx.ty(r)));
    }
    for (name, default) in [("layout", 0), ("input_forget", 0)] {
        if cx.int(name, default) != default {
            return unsupported(format!("has `{name}` set"));
        }
    }
    if cx.opt(4).is_some() || cx.opt(7).is_some() || cx.attr("clip").is_some() {
        return unsupported("has a length per sequence, peepholes or a clip");
    }
    let back: &[bool] = match cx.text("direction", "forward")?.as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return invalid(format!("has the unknown direction `{other}`")),
    };
    let named = cx.attr("activations").map(|a| a.strings.clone()).unwrap_or_default();
    let wanted = cell.activations.iter().cycle();
    if named.iter().zip(wanted).any(|(a, b)| !a.eq_ignore_ascii_case(b.as_bytes())) {
        return unsupported("has other activations than its definition");
    }
    let (dims, size) = (cx.dims(x), cx.dims(r)[2].as_const().unwrap_or(0));
    let shape = |cx: &OpCx<'_, '_>, v: Value| cx.dims(v)[..2].to_vec();
    let rows = vec![Dim::from(back.len()), Dim::from(size.saturating_mul(cell.gates))];
    if size <= 0 || shape(cx, w) != rows || shape(cx, r) != rows {
        return invalid(format!("has weights {} and {}, needs {} gates for each direction", cx.ty(w), cx.ty(r), cell.gates));
    }
    let Some(steps) = dims[0].as_const() else { return too_symbolic("runs over a sequence of symbolic length") };
    if steps > MAX_STEPS {
        return limit(format!("runs over {steps} steps, the limit of unrolling is {MAX_STEPS}"));
    }
    if steps == 0 {
        return unsupported("runs over an empty sequence");
    }
    let state_dims = [dims[1].clone(), Dim::from(size)];
    let (mut ways, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for (d, back) in (0..).zip(back) {
        let (w, r) = (at(cx, w, d)?, at(cx, r, d)?);
        let (w, r) = (cx.transpose(w, &[1, 0])?, cx.transpose(r, &[1, 0])?);
        let bias = optional_at(cx, cx.opt(3), d)?;
        let mut inputs = cx.mat_mul(x, w, cx.dtype(x))?;
        let mut bias_h = None;
        if let Some(b) = bias {
            let (bx, bh) = (gate(cx, b, 0, size * cell.gates)?, gate(cx, b, 1, size * cell.gates)?);
            inputs = cx.bin(BinOp::Add, inputs, bx)?;
            bias_h = Some(bh);
        }
        let zeros = |cx: &mut OpCx<'_, '_>| cx.full(cx.dtype(x), 0.0, &state_dims);
        let h = match optional_at(cx, cx.opt(5), d)? {
            Some(h) => h,
            None => zeros(cx)?,
        };
        let c = match optional_at(cx, cx.opt(6).filter(|_| cell.cells > 0), d)? {
            Some(c) => Some(c),
            None if cell.cells > 0 => Some(zeros(cx)?),
            None => None,
        };
        let mut state = State { h, c };
        let mut outputs = Vec::new();
        for t in 0..steps {
            let x = at(cx, inputs, if *back { steps - 1 - t } else { t })?;
            let h = cx.mat_mul(state.h, r, cx.dtype(x))?;
            let reset_after = cx.flag("linear_before_reset");
            state = (cell.step)(cx, Step { x, h, bias: bias_h, state, size, reset_after, recurrence: r })?;
            outputs.push(cx.reshape(state.h, vec![Dim::from(1), Dim::from(1), dims[1].clone(), Dim::from(size)])?);
        }
        if *back {
            outputs.reverse();
        }
        ways.push(cx.concat(&outputs, 0)?);
        let wide = vec![Dim::from(1), dims[1].clone(), Dim::from(size)];
        last_h.push(cx.reshape(state.h, wide.clone())?);
        if let Some(c) = state.c {
            last_c.push(cx.reshape(c, wide)?);
        }
    }
    let mut out = vec![cx.concat(&ways, 1)?, cx.concat(&last_h, 0)?];
    if !last_c.is_empty() {
        out.push(cx.concat(&last_c, 0)?);
    }
    Ok(out)
}
