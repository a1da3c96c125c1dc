//! The text of kernel files, and the kernels that it defines.

use std::collections::BTreeSet;
use std::path::Path;

/// The text of a kernel file and of all headers that it includes from `kernels/`, one after the
/// other. Those of the emulated device are not for nvcc.
pub fn source_text(root: &Path, dir: &str, file: &str) -> Result<String, String> {
    let (mut text, mut seen, mut pending) = (String::new(), BTreeSet::new(), vec![file.to_string()]);
    while let Some(name) = pending.pop() {
        if name.starts_with("emulated/") || !seen.insert(name.clone()) {
            continue;
        }
        let path = root.join(if name == file { dir } else { "kernels" }).join(&name);
        let source = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        pending.extend(includes(&source).map(str::to_string));
        text += &source;
    }
    Ok(text)
}

/// The files that a text includes by name.
pub fn includes(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include \""));
    lines.filter_map(|rest| rest.split('"').next())
}

/// A kernel as its text declares it. The numbers are C++ expressions.
#[derive(Debug, PartialEq, Eq)]
pub struct Declaration {
    pub name: String,
    /// The bound on its threads; 0 without one.
    pub max_threads: String,
    /// The number of blocks in a cluster.
    pub cluster: String,
}

/// Every `extern "C" __global__ void [__launch_bounds__(N…)] [CLUSTER(n)] name(`, those that macros
/// define included.
pub fn kernels(text: &str) -> Vec<Declaration> {
    let code = expand_kernel_macros(text);
    let mut found = Vec::new();
    for rest in code.split("extern \"C\" __global__ void").skip(1) {
        let (max_threads, rest) = attribute(rest, "__launch_bounds__(").unwrap_or(("0", rest));
        let (cluster, rest) = attribute(rest, "CLUSTER(").unwrap_or(("1", rest));
        let (name, _) = rest.split_once('(').expect("the parameters of a kernel");
        let [name, max_threads, cluster] = [name, max_threads, cluster].map(|s| s.trim().to_owned());
        found.push(Declaration { name, max_threads, cluster });
    }
    found
}

/// The first argument of an attribute that the text may begin with, and the text after it.
fn attribute<'a>(text: &'a str, begin: &str) -> Option<(&'a str, &'a str)> {
    let rest = text.trim_start().strip_prefix(begin)?;
    let (arguments, rest) = rest.split_once(')').expect("a closed attribute of a kernel");
    Some((arguments.split(',').next().unwrap_or_default(), rest))
}

/// The text without comments, in which every use of a macro that defines kernels is replaced by its
/// definition. A use is a line of its own, and its arguments are single tokens.
fn expand_kernel_macros(text: &str) -> String {
    let code: String = text.lines().flat_map(|line| [line.split("//").next().unwrap(), "\n"]).collect();
    let code = code.replace("\\\n", " ");
    let defines = |line: &&str| line.starts_with("#define") && line.contains("__global__");
    let (definitions, lines): (Vec<&str>, Vec<&str>) = code.lines().partition(defines);
    let macros: Vec<_> = definitions.into_iter().map(|line| call(&line["#define".len()..])).collect();
    let expand = |line: &str| {
        let (name, arguments, _) = if line.contains('(') { call(line) } else { return line.to_owned() };
        match macros.iter().find(|(of, ..)| *of == name) {
            Some((_, parameters, body)) => substitute(body, parameters, &arguments),
            None => line.to_owned(),
        }
    };
    lines.into_iter().flat_map(|line| [expand(line), "\n".to_owned()]).collect()
}

/// Splits `NAME(A, B) rest`.
fn call(text: &str) -> (&str, Vec<&str>, &str) {
    let (name, rest) = text.split_once('(').unwrap_or((text, ""));
    let (arguments, rest) = rest.split_once(')').unwrap_or((rest, ""));
    (name.trim(), arguments.split(',').map(str::trim).collect(), rest)
}

/// Replaces parameters by arguments in the body of a macro, and joins the tokens around `##`.
fn substitute(body: &str, parameters: &[&str], arguments: &[&str]) -> String {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let replaced = body.split_inclusive(|c| !in_word(c)).flat_map(|piece| {
        let word = piece.trim_end_matches(|c| !in_word(c));
        let argument = parameters.iter().zip(arguments).find(|(parameter, _)| **parameter == word);
        [argument.map_or(word, |(_, argument)| argument), &piece[word.len()..]]
    });
    replaced.collect::<String>().replace("##", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_name_bound_and_cluster() {
        let text = r#"
extern "C" __global__ void plain(int n) {}
// extern "C" __global__ void __launch_bounds__(1) comment() {}
#define OTHER(N) f(N)
#define TILE_KERNELS(NAME, N, TILE)                                              \
    extern "C" __global__ void __launch_bounds__(TILE::THREADS) NAME##_rows_##N( \
        float* out, int N_) {                                                    \
        rows<N, TILE>(out, N_);                                                  \
    }                                                                            \
    extern "C" __global__ void __launch_bounds__(128, 2) NAME##_##N(int n) {}
extern "C" __global__ void __launch_bounds__(384, 1) CLUSTER(2)
    pair(int n) {}
extern "C" __global__ void CLUSTER(Tile::BLOCKS) group(int n) {}
TILE_KERNELS(matmul, 64x64, Tile64x64)
TILE_KERNELS(add, 8, Tile8)  // smaller
OTHER(3);
"#;
        let found = kernels(text);
        let found: Vec<[&str; 3]> =
            found.iter().map(|k| [&k.name, &k.max_threads, &k.cluster].map(|s| &**s)).collect();
        let expected = [
            ["plain", "0", "1"],
            ["pair", "384", "2"],
            ["group", "0", "Tile::BLOCKS"],
            ["matmul_rows_64x64", "Tile64x64::THREADS", "1"],
            ["matmul_64x64", "128", "1"],
            ["add_rows_8", "Tile8::THREADS", "1"],
            ["add_8", "128", "1"],
        ];
        assert_eq!(found, expected);
    }
}
