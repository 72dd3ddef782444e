//! Building small ONNX models.
#![allow(dead_code, reason = "each test uses some of it")]

use prost::Message;
use transc_frontend::onnx::proto::attribute_proto::AttributeType;
use transc_frontend::onnx::proto::tensor_proto::{DataLocation, DataType};
use transc_frontend::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use transc_frontend::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

pub fn strings(v: &[&str]) -> Vec<String> {
    v.iter().map(|s| (*s).to_owned()).collect()
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { op_type: Some(op.into()), input: strings(inputs), output: strings(outputs), ..NodeProto::default() }
}

pub fn with(mut n: NodeProto, a: AttributeProto) -> NodeProto {
    n.attribute.push(a);
    n
}

pub fn in_domain(mut n: NodeProto, domain: &str) -> NodeProto {
    n.domain = Some(domain.into());
    n
}

fn attr(name: &str, t: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(t.into()), ..AttributeProto::default() }
}

pub fn int(name: &str, v: i64) -> AttributeProto {
    AttributeProto { i: Some(v), ..attr(name, AttributeType::Int) }
}

pub fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto { ints: v.to_vec(), ..attr(name, AttributeType::Ints) }
}

pub fn graph_attr(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g), ..attr(name, AttributeType::Graph) }
}

/// A float input or output; a name is a symbolic dim.
pub fn value(name: &str, dims: &[&str]) -> ValueInfoProto {
    let dim = |d: &&str| Dimension {
        value: Some(match d.parse::<i64>() {
            Ok(v) => dimension::Value::DimValue(v),
            Err(_) => dimension::Value::DimParam((*d).into()),
        }),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(shape) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..ValueInfoProto::default() }
}

pub fn raw(name: &str, t: DataType, dims: &[i64], bytes: Vec<u8>) -> TensorProto {
    let raw_data = Some(bytes.into());
    TensorProto { name: Some(name.into()), data_type: Some(t.into()), dims: dims.to_vec(), raw_data, ..TensorProto::default() }
}

pub fn floats(name: &str, dims: &[i64], v: &[f32]) -> TensorProto {
    raw(name, DataType::Float, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect())
}

pub fn int64s(name: &str, dims: &[i64], v: &[i64]) -> TensorProto {
    raw(name, DataType::Int64, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect())
}

/// A float tensor of `dims` whose data lies in another file.
pub fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(k, v): &(&str, &str)| StringStringEntryProto { key: Some((*k).into()), value: Some((*v).into()) };
    TensorProto {
        name: Some(name.into()),
        data_type: Some(1),
        dims: dims.to_vec(),
        data_location: Some(DataLocation::External.into()),
        external_data: entries.iter().map(entry).collect(),
        ..TensorProto::default()
    }
}

pub fn graph(nodes: Vec<NodeProto>, inputs: Vec<ValueInfoProto>, outputs: &[&str], weights: Vec<TensorProto>) -> GraphProto {
    GraphProto {
        name: Some("g".into()),
        node: nodes,
        input: inputs,
        output: outputs.iter().map(|o| value(o, &[])).collect(),
        initializer: weights,
        ..GraphProto::default()
    }
}

pub fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
}

pub fn model(g: GraphProto) -> ModelProto {
    ModelProto { ir_version: Some(8), opset_import: vec![opset("", 17)], graph: Some(g), ..ModelProto::default() }
}

pub fn function(name: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.into()),
        domain: Some("local".into()),
        input: strings(&["x"]),
        output: strings(&["y"]),
        node: nodes,
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..FunctionProto::default()
    }
}

pub fn with_functions(mut m: ModelProto, functions: Vec<FunctionProto>) -> ModelProto {
    m.functions = functions;
    m.opset_import.push(opset("local", 1));
    m
}

/// `y = w + x` with one weight.
pub fn adds(weight: TensorProto) -> ModelProto {
    model(graph(vec![node("Add", &["w", "x"], &["y"])], vec![value("x", &["1"])], &["y"], vec![weight]))
}

/// `x -> y` by some nodes, with constants.
pub fn chain(nodes: Vec<NodeProto>, dims: &[&str], weights: Vec<TensorProto>) -> ModelProto {
    model(graph(nodes, vec![value("x", dims)], &["y"], weights))
}

pub fn bytes(m: &ModelProto) -> Vec<u8> {
    m.encode_to_vec()
}
