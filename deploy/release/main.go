// Command release makes the archives of a release: the three programs for each system, with what a host needs to run
// them, and the checksums of all. Of one commit and one version of Go it makes the same bytes in any clone, on any
// day: nothing of the machine, the folder, the user or the clock goes in, and a changed working tree is refused.
//
// It owns the folder that it writes to, and keeps no state: a release that was interrupted is made again.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const sums = "SHA256SUMS"

var programs = []string{"./controlplane/cmd/bailiwick", "./controlplane/cmd/bailiwick-control", "./dataplane/cmd/bailiwick-edge"}

// carried goes into each archive as it is in the commit.
var carried = []string{"LICENSE", "README.md", "docs", "deploy/README.md", "deploy/compose", "deploy/example", "deploy/prometheus", "deploy/sysctl", "deploy/systemd"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	out := flag.String("out", "dist", "folder for the archives and their "+sums)
	platforms := flag.String("platforms", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64", "systems to build for, comma separated")
	flag.Parse()
	if err := run(ctx, *out, strings.Split(*platforms, ","), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// commit is what a release is made of.
type commit struct {
	id, version string
	at          time.Time
}

func run(ctx context.Context, out string, platforms []string, w io.Writer) error {
	head, err := readCommit(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	var lines bytes.Buffer
	for _, platform := range platforms {
		system, arch, ok := strings.Cut(platform, "/")
		if !ok {
			return fmt.Errorf("platform %q is not SYSTEM/ARCH, as linux/amd64", platform)
		}
		name := fmt.Sprintf("bailiwick-%s-%s-%s", head.version, system, arch)
		sum, err := build(ctx, head, system, arch, filepath.Join(out, name+".tar.gz"), name)
		if err != nil {
			return fmt.Errorf("%s: %w", platform, err)
		}
		fmt.Fprintf(&lines, "%s  %s.tar.gz\n", sum, name)
	}
	if err := os.WriteFile(filepath.Join(out, sums), lines.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(w, "%s of commit %s, with %s, in %s:\n%s", head.version, head.id, runtime.Version(), out, lines.String())
	return nil
}

// readCommit refuses a tree that is not exactly a commit: two clones could not agree on it.
func readCommit(ctx context.Context) (commit, error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Stderr = os.Stderr
		text, err := cmd.Output()
		return strings.TrimSpace(string(text)), err
	}
	changed, err := git("status", "--porcelain")
	if err != nil {
		return commit{}, fmt.Errorf("ask git for changes: %w", err)
	}
	if changed != "" {
		return commit{}, fmt.Errorf("the working tree differs from its commit: commit, or take a clean clone:\n%s", changed)
	}
	id, err1 := git("rev-parse", "HEAD")
	seconds, err2 := git("log", "-1", "--format=%ct")
	tags, err3 := git("tag", "--points-at", "HEAD", "--sort=-version:refname", "--list", "v*")
	if err := errors.Join(err1, err2, err3); err != nil {
		return commit{}, fmt.Errorf("ask git for the commit: %w", err)
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return commit{}, fmt.Errorf("read the commit's date: %w", err)
	}
	version, _, _ := strings.Cut(tags, "\n")
	if version == "" {
		version = id[:12] // what git abbreviates by itself grows with the clone
	}
	return commit{id, version, time.Unix(unix, 0)}, nil
}

// build makes one archive and returns its checksum.
func build(ctx context.Context, head commit, system, arch, path, name string) (string, error) {
	bin, err := os.MkdirTemp("", "bailiwick-release-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(bin)
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", "-s -w -X main.version=" + head.version, "-o", bin + "/"}, programs...)
	cmd := exec.CommandContext(ctx, "go", args...)
	// What a builder's environment could change in the programs is set here.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFLAGS=", "GOWORK=off", "GOFIPS140=off")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go build: %w", err)
	}
	var a archive
	for _, p := range programs {
		program := filepath.Base(p)
		if err := a.add(filepath.Join(bin, program), program, true); err != nil {
			return "", err
		}
	}
	for _, from := range carried {
		if err := a.add(from, from, false); err != nil {
			return "", err
		}
	}
	a.text("VERSION", fmt.Sprintf("version %s\ncommit %s\ngo %s\n", head.version, head.id, runtime.Version()))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	err = a.write(io.MultiWriter(f, hash), name, head.at)
	return hex.EncodeToString(hash.Sum(nil)), errors.Join(err, f.Close())
}
