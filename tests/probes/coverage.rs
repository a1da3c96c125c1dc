//! Every function of the two headers has a probe.

use crate::root;

/// The calls that probes must have, for every function that the text of the headers defines.
///
/// Specializations and overloads count separately: `pack2<bf16>(…)`, `to_f32(f16{…})`. For wgmma
/// every type and every number of sums count: `products<bf16>(…)` of a probe calls `one_product<T,
/// 64>(…)` and others like it, which call it for all orders of the operands.
fn calls(headers: &str) -> Vec<String> {
    let lines: Vec<&str> = headers.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let mut functions = Vec::new();
    for line in lines.iter().filter(|line| line.contains("__device__") && line.contains('(')) {
        let (before, arguments) = line.split_once('(').unwrap_or_default();
        let name = before.rsplit([' ', '*']).next().unwrap_or_default();
        let first = arguments.trim_start_matches("const ").split([' ', '*', ')']).next().unwrap_or_default();
        functions.push((name, first));
    }
    let mut calls = Vec::new();
    for &(name, first) in &functions {
        let overloads = functions.iter().filter(|(other, _)| *other == name).count();
        let specialized = functions.iter().any(|(other, _)| other.starts_with(&format!("{name}<")));
        match name {
            // The declaration of a template whose specializations follow.
            _ if specialized => {}
            "multiply" | "multiply_rs" => {
                let (all, one) = if name == "multiply" {
                    ("products", "one_product")
                } else {
                    ("rs_products", "rs_product")
                };
                let after =
                    |text: &'static str| lines.iter().filter_map(move |line| line.trim().strip_prefix(text));
                let types = after("WGMMA_OF(").filter_map(|rest| rest.split(',').next());
                calls.extend(types.map(|t| format!("{all}<{t}>(")));
                let sums = after("WGMMA_SHAPE(TYPE, ").filter_map(|rest| rest.split(", ").nth(1));
                calls.extend(sums.map(|sums| format!("{one}<T, {sums}>(")));
            }
            _ if overloads > 1 => calls.push(format!("{name}({first}{{")),
            _ => calls.push(name.to_owned()),
        }
    }
    calls
}

/// Whether a probe calls it by name, with or without template arguments.
fn is_called(call: &str, probes: &str) -> bool {
    let code = probes.lines().map(|line| line.split("//").next().unwrap_or_default());
    let starts = |line: &str, call: &str| {
        line.match_indices(call).any(|(i, _)| {
            let before = line[..i].chars().next_back();
            let after = line[i + call.len()..].chars().next();
            let whole = call.ends_with(['(', '{']) || matches!(after, Some('(' | '<'));
            whole && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    };
    // The name of a kernel is not a call.
    code.filter(|line| !line.contains("__global__")).any(|line| starts(line, call))
}

fn missing(headers: &str, probes: &str) -> Vec<String> {
    calls(headers).into_iter().filter(|call| !is_called(call, probes)).collect()
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn headers() -> String {
    ["kernels/ptx.cuh", "kernels/hopper.cuh"].map(read).concat()
}

fn probes() -> String {
    ["probes", "probes_hopper", "probes_stores"]
        .map(|name| read(&format!("tests/probes/kernels/{name}.cu")))
        .concat()
}

#[test]
fn every_function_has_a_probe() {
    let missing = missing(&headers(), &probes());
    assert!(missing.is_empty(), "tests/probes/kernels/ calls nothing like\n{}", missing.join("\n"));
}

#[test]
fn every_kernel_is_launched() {
    let sources = ["conversions", "memory", "copies", "clusters", "mma", "stores", "tma", "wgmma"];
    let tests = sources.map(|name| read(&format!("tests/probes/{name}.rs"))).concat();
    for kernel in kernels(&probes()) {
        assert!(tests.contains(&format!("\"{kernel}\"")), "no test launches {kernel}");
    }
}

/// The names after `extern "C" __global__ void __launch_bounds__(…) [CLUSTER(n)]`.
fn kernels(text: &str) -> Vec<String> {
    let after = text.split("extern \"C\" __global__ void __launch_bounds__(").skip(1);
    let names = after.filter_map(|rest| {
        let rest = rest.split_once(')')?.1.trim_start();
        let rest = if rest.starts_with("CLUSTER(") { rest.split_once(')')?.1 } else { rest };
        rest.split('(').next()
    });
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn what_the_headers_define_is_found() {
    let calls = calls(&headers());
    for expected in [
        "to_f32(f16{",
        "pack2<bf16>",
        "from_f32<f16>",
        "opaque",
        "ldmatrix_x4",
        "ldmatrix_x4_trans",
        "mma_m16n8k16<f16>",
        "cp_async_wait",
        "matrix_descriptor",
        "tma_prefetch",
        "cluster_sync",
        "registers_increase",
        "products<bf16>(",
        "rs_products<f16>(",
        "one_product<T, 4>(",
        "rs_product<T, 128>(",
        "wgmma",
    ] {
        assert!(calls.iter().any(|call| call == expected), "{expected} is not in {calls:?}");
    }
    assert_eq!(kernels(&probes()).len(), probes().matches("__global__").count());
}

#[test]
fn a_function_without_a_probe_is_named() {
    let missing_after = |add: &str, from: &str, to: &str| {
        let probes = probes();
        assert!(probes.contains(from));
        missing(&(headers() + add), &probes.replace(from, to))
    };
    let new = "__device__ __forceinline__ void movmatrix(uint32_t row) {}\n";
    assert_eq!(missing_after(new, "", ""), ["movmatrix"]);
    let overload = "__device__ __forceinline__ float to_f32(fp8 v) { return 0; }\n";
    assert_eq!(missing_after(overload, "", ""), ["to_f32(fp8{"]);
    assert_eq!(missing_after("", "pack2<f16>(", "pack2<bf16>("), ["pack2<f16>"]);
    assert_eq!(missing_after("", "one_product<T, 4>(", "one_product<T, 8>("), ["one_product<T, 4>("]);
    assert_eq!(missing_after("", "tma_prefetch(", "// tma_prefetch("), ["tma_prefetch"]);
    assert_eq!(
        missing_after("WGMMA_OF(tf32, \"tf32\")\n", "", ""),
        ["products<tf32>(", "rs_products<tf32>("]
    );
    let shape = "        WGMMA_SHAPE(TYPE, 24, 12, \"%12\")\n";
    assert_eq!(missing_after(shape, "", ""), ["one_product<T, 12>(", "rs_product<T, 12>("]);
}
