//! A walk over the protobuf encoding before it is decoded: finds where a file is damaged, and bounds its depth.
//!
//! Encoding: <https://protobuf.dev/programming-guides/encoding/>. The walk knows which fields of which message hold messages, so it
//! follows exactly the nesting that the decoder would.

use crate::Problem;

/// Deepest nesting of messages, as in other readers of the format.
const MAX_DEPTH: usize = 100;

/// The messages that can hold others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    ValueInfo,
    Type,
    TensorType,
    WrappedType,
    MapType,
    Shape,
    Function,
    Training,
    Annotation,
    Leaf,
}

impl Message {
    /// The message in a field; `None` for strings, bytes and packed numbers.
    fn child(self, field: u64) -> Option<Message> {
        use Message::{
            Annotation, Attribute, Function, Graph, Leaf, MapType, Model, Node, Shape, Sparse, Tensor, TensorType, Training,
            Type, ValueInfo, WrappedType,
        };
        Some(match (self, field) {
            (Model, 7) | (Training, 1 | 2) | (Attribute, 6 | 11) => Graph,
            (Model, 20) => Training,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Graph, 11..=13) | (Function, 12) => ValueInfo,
            (Node, 5) | (Function, 11) => Attribute,
            (ValueInfo, 2) | (Attribute, 14 | 15) | (WrappedType, 1) | (MapType, 2) => Type,
            (Type, 1 | 8) => TensorType,
            (Type, 4 | 9) => WrappedType,
            (Type, 5) => MapType,
            (TensorType, 2) => Shape,
            (Shape, 1) => Leaf,
            (Graph, 14) => Annotation,
            (Model, 8 | 14) | (Graph, 16) | (Node, 9) | (Tensor, 13 | 16) | (Function, 9 | 14) | (Annotation, 2) => Leaf,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Message::Model => "model",
            Message::Graph => "graph",
            Message::Node => "node",
            Message::Attribute => "attribute",
            Message::Tensor => "tensor",
            Message::Sparse => "sparse tensor",
            Message::ValueInfo => "value",
            Message::Type | Message::TensorType | Message::WrappedType | Message::MapType => "type",
            Message::Shape => "shape",
            Message::Function => "function",
            Message::Training => "training info",
            Message::Annotation => "annotation",
            Message::Leaf => "entry",
        }
    }
}

/// Checks the encoding of a model file.
///
/// # Errors
/// Damage, with the position; nesting that is too deep.
pub(super) fn check(bytes: &[u8]) -> Result<(), Problem> {
    walk(bytes, Message::Model)
}

/// Checks the encoding of a tensor file.
///
/// # Errors
/// As [`check`].
pub(super) fn check_tensor(bytes: &[u8]) -> Result<(), Problem> {
    walk(bytes, Message::Tensor)
}

/// What the walk is inside of: a message up to `end`, or a group up to its end tag.
struct Frame {
    message: Message,
    end: usize,
    group: Option<u64>,
}

fn walk(bytes: &[u8], root: Message) -> Result<(), Problem> {
    let mut at = 0usize;
    let mut stack = vec![Frame { message: root, end: bytes.len(), group: None }];
    while let Some(top) = stack.last() {
        let (message, end) = (top.message, top.end);
        if at == end {
            if top.group.is_some() {
                return Err(truncated(message, 0, at));
            }
            stack.pop();
            continue;
        }
        let start = at;
        let tag = varint(bytes, &mut at, end).ok_or_else(|| damaged(start))?;
        let (field, wire) = (tag >> 3, tag & 7);
        if field == 0 || tag > u64::from(u32::MAX) {
            return Err(damaged(start));
        }
        match wire {
            0 => {
                varint(bytes, &mut at, end).ok_or_else(|| truncated(message, field, at))?;
            }
            1 | 5 => {
                at += if wire == 1 { 8 } else { 4 };
                if at > end {
                    return Err(truncated(message, field, start));
                }
            }
            2 => {
                let len = varint(bytes, &mut at, end).ok_or_else(|| truncated(message, field, start))?;
                let inner = usize::try_from(len).ok().and_then(|n| at.checked_add(n)).filter(|e| *e <= end);
                let Some(inner) = inner else {
                    let rest = end - at;
                    return Err(Problem::invalid(
                        "T0104",
                        format!(
                            "the file is cut off or damaged: field {field} of a {} at byte {start} is {len} bytes long, but only {rest} follow",
                            message.name()
                        ),
                    ));
                };
                match message.child(field) {
                    Some(child) => push(&mut stack, Frame { message: child, end: inner, group: None }, start)?,
                    None => at = inner,
                }
            }
            3 => push(&mut stack, Frame { message: Message::Leaf, end, group: Some(field) }, start)?,
            4 => {
                if top.group != Some(field) {
                    return Err(damaged(start));
                }
                stack.pop();
            }
            _ => return Err(damaged(start)),
        }
    }
    Ok(())
}

fn push(stack: &mut Vec<Frame>, frame: Frame, at: usize) -> Result<(), Problem> {
    if stack.len() > MAX_DEPTH {
        return Err(Problem::limit("T0105", format!("messages are nested deeper than {MAX_DEPTH} at byte {at} of the file")));
    }
    stack.push(frame);
    Ok(())
}

fn damaged(at: usize) -> Problem {
    Problem::invalid("T0103", format!("not a valid protobuf at byte {at}")).help("the file is not an ONNX model, or is damaged")
}

fn truncated(message: Message, field: u64, at: usize) -> Problem {
    Problem::invalid("T0104", format!("the file ends inside field {field} of a {} at byte {at}", message.name()))
        .help("the file is cut off; copy or download it again")
}

/// A base-128 number of at most ten bytes that ends before `end`.
fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let byte = *bytes.get(*at).filter(|_| *at < end)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
