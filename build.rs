//! Compiles the mesh's proto with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["a3/mesh/v1/mesh.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // The large and rare variants of the hot path's messages: the others keep their size.
        .boxed(".a3.mesh.v1.Request.request.accept")
        .boxed(".a3.mesh.v1.Reply.reply.promised")
        .compile_fds(descriptors)?;
    Ok(())
}
