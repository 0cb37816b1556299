// Command generate turns the .proto sources under proto/bailiwick into the committed Go of proto/gen.
//
// It needs Go and nothing else: the sources are compiled in-process, buf/validate's descriptor comes from
// the linked protovalidate module, and the two plugins are go.mod tools. `make generate` runs it and CI
// fails when its output differs from what is committed.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// validatePackage is the import path of buf/validate's generated Go; its .proto does not name one that resolves here.
const validatePackage = "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate;validate"

func main() {
	if err := run("proto"); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	var sources []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".proto") {
			rel, _ := filepath.Rel(root, path)
			sources = append(sources, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		return err
	}
	sort.Strings(sources)
	compiler := protocompile.Compiler{
		SourceInfoMode: protocompile.SourceInfoStandard,
		Resolver: protocompile.WithStandardImports(protocompile.CompositeResolver{
			&protocompile.SourceResolver{ImportPaths: []string{root}},
			protocompile.ResolverFunc(func(path string) (protocompile.SearchResult, error) {
				if path != "buf/validate/validate.proto" {
					return protocompile.SearchResult{}, fmt.Errorf("import %q is not known here", path)
				}
				return protocompile.SearchResult{Proto: protodesc.ToFileDescriptorProto(validate.File_buf_validate_validate_proto)}, nil
			}),
		}),
	}
	files, err := compiler.Compile(context.Background(), sources...)
	if err != nil {
		return err
	}
	// Every file after its imports, as plugins demand.
	var ordered []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var visit func(protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			visit(f.Imports().Get(i).FileDescriptor)
		}
		d := protodesc.ToFileDescriptorProto(f)
		if r, ok := f.(interface {
			FileDescriptorProto() *descriptorpb.FileDescriptorProto
		}); ok {
			d = proto.CloneOf(r.FileDescriptorProto())
		}
		if f.Path() == "buf/validate/validate.proto" {
			d.Options.GoPackage = proto.String(validatePackage)
		}
		ordered = append(ordered, d)
	}
	for _, f := range files {
		visit(f)
	}
	out := filepath.Join(root, "gen")
	if err := os.RemoveAll(filepath.Join(out, "bailiwick")); err != nil {
		return err
	}
	for _, plugin := range []struct{ name, parameter string }{
		{"protoc-gen-go", "paths=source_relative"},
		{"protoc-gen-connect-go", "paths=source_relative,simple"},
	} {
		if err := generate(out, plugin.name, plugin.parameter, sources, ordered); err != nil {
			return fmt.Errorf("%s: %w", plugin.name, err)
		}
	}
	return nil
}

func generate(out, plugin, parameter string, sources []string, files []*descriptorpb.FileDescriptorProto) error {
	request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: sources, Parameter: proto.String(parameter), ProtoFile: files,
	})
	if err != nil {
		return err
	}
	var stdout bytes.Buffer
	cmd := exec.Command("go", "tool", plugin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(request), &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(stdout.Bytes(), &response); err != nil {
		return err
	}
	if response.Error != nil {
		return fmt.Errorf("%s", response.GetError())
	}
	for _, f := range response.File {
		path := filepath.Join(out, filepath.FromSlash(f.GetName()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
