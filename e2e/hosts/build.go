package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"bailiwick/e2e/mutants/overlay"
)

// Programs of the lab write down the secrets of their TLS sessions, so that captures can be read. The standard library
// is edited for that, in the lab's builds alone: no program of the product can be told to do it.
func readable(goroot string) []overlay.Edit {
	return []overlay.Edit{
		{File: goroot + "/src/crypto/tls/common.go",
			Old: "func (c *Config) writeKeyLog(label string, clientRandom, secret []byte) error {\n",
			New: "func (c *Config) writeKeyLog(label string, clientRandom, secret []byte) error {\n\tlabWrite(label, clientRandom, secret)\n"},
		{File: goroot + "/src/crypto/tls/lab.go", New: `package tls

import (
	"fmt"
	"os"
)

func labWrite(label string, clientRandom, secret []byte) {
	if path := os.Getenv("KEYLOG"); path != "" {
		if f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintf(f, "%s %x %x\n", label, clientRandom, secret)
			f.Close()
		}
	}
}
`},
	}
}

// build builds programs, edited, into dir/bin.
func build(root, dir string, edits []overlay.Edit, programs ...string) (string, error) {
	bin, work := filepath.Join(dir, "bin"), filepath.Join(dir, "edited")
	for _, d := range []string{bin, work} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return "", err
		}
	}
	args := []string{"build", "-trimpath", "-o", bin + "/"}
	if len(edits) > 0 {
		path, err := overlay.Write(root, work, edits)
		if err != nil {
			return "", err
		}
		args = append(args, "-overlay", path)
	}
	cmd := exec.Command("go", append(args, programs...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", strings.Join(programs, " "), err, out)
	}
	return bin, nil
}

var programs = []string{"./controlplane/cmd/bailiwick-control", "./controlplane/cmd/bailiwick", "./dataplane/cmd/bailiwick-edge"}

// builder makes the programs of each build.
type builder struct {
	root, goroot, work string
	given              string // programs of the clean build that somebody else made; "": none
	clean              string // once built
}

func newBuilder(work, given string) (*builder, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	goroot, err := ask("env", "GOROOT")
	return &builder{root: root, goroot: goroot, work: work, given: given}, err
}

// build makes the programs of one build; those that it does not edit are the clean ones.
func (b *builder) build(l leak) (string, error) {
	var edits []overlay.Edit
	if b.given == "" {
		edits = readable(b.goroot)
	}
	if b.clean == "" {
		dir := filepath.Join(b.work, clean)
		b.clean = filepath.Join(dir, "bin")
		var err error
		if b.given == "" {
			_, err = build(b.root, dir, edits, programs...)
		} else if err = os.MkdirAll(b.clean, 0o700); err == nil {
			err = link(b.given, b.clean)
		}
		if err != nil {
			return "", err
		}
	}
	if l.name == clean {
		return b.clean, nil
	}
	dir := filepath.Join(b.work, l.name)
	bin, err := build(b.root, dir, append(edits, l.edits...), l.programs...)
	if err != nil {
		return "", fmt.Errorf("leaking build %s: %w", l.name, err)
	}
	return bin, link(b.clean, bin)
}

// link makes the programs of one directory available in another, where that has none of its own.
func link(from, to string) error {
	from, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	for _, p := range programs {
		name := filepath.Base(p)
		if _, err := os.Stat(filepath.Join(from, name)); err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(to, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func ask(args ...string) (string, error) {
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

func moduleRoot() (string, error) {
	mod, err := ask("env", "GOMOD")
	if err == nil && filepath.Base(mod) != "go.mod" {
		err = errors.New("run it inside the module")
	}
	return filepath.Dir(mod), err
}
