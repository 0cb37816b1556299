package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var commitTime = time.Date(2026, 11, 25, 12, 0, 0, 987, time.FixedZone("CET", 3600))

// tree writes the same two files twice over: other folder, other order, other modes, other dates.
func tree(t *testing.T, names []string, mode os.FileMode, at time.Time) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content of "+name), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func packed(t *testing.T, at time.Time, add ...func(*archive) error) []byte {
	t.Helper()
	var a archive
	for _, f := range add {
		if err := f(&a); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := a.write(&b, "bailiwick-v1", at); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchive_IsTheSameFromAnyFolder(t *testing.T) {
	one := tree(t, []string{"systemd/b.service", "systemd/a.service", "bin/edge"}, 0o600, time.Unix(1, 0))
	two := tree(t, []string{"bin/edge", "systemd/a.service", "systemd/b.service"}, 0o755, time.Now())
	program := func(dir string) func(*archive) error {
		return func(a *archive) error { return a.add(filepath.Join(dir, "bin", "edge"), "edge", true) }
	}
	units := func(dir string) func(*archive) error {
		return func(a *archive) error { return a.add(filepath.Join(dir, "systemd"), "deploy/systemd", false) }
	}
	first := packed(t, commitTime, program(one), units(one))
	if !bytes.Equal(first, packed(t, commitTime.UTC(), units(two), program(two))) {
		t.Error("two folders with the same content give two archives")
	}
	if bytes.Equal(first, packed(t, commitTime.Add(time.Second), program(one), units(one))) {
		t.Error("the commit's date is not in the archive")
	}

	zipped, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	if zipped.Name != "" || !zipped.ModTime.IsZero() {
		t.Errorf("the gzip header says %q, %v", zipped.Name, zipped.ModTime)
	}
	want := []struct {
		name string
		mode int64
	}{{"deploy/systemd/a.service", 0o644}, {"deploy/systemd/b.service", 0o644}, {"edge", 0o755}}
	tape := tar.NewReader(zipped)
	for _, w := range want {
		h, err := tape.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "bailiwick-v1/"+w.name || h.Mode != w.mode || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != commitTime.Unix() {
			t.Errorf("%+v, want %v of nobody with the commit's date", h, w)
		}
	}
	if _, err := tape.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last file: %v", err)
	}
}

func TestArchive_RefusesWhatNobodyMeant(t *testing.T) {
	var twice archive
	twice.text("VERSION", "1")
	twice.text("VERSION", "2")
	if err := twice.write(io.Discard, "x", commitTime); err == nil {
		t.Error("one name twice is written")
	}
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Skip(err)
	}
	var linked archive
	if err := linked.add(dir, "x", false); err == nil {
		t.Error("a link out of the tree is followed")
	}
	if err := linked.add(filepath.Join(dir, "missing"), "x", false); err == nil {
		t.Error("a file that is not there is left out in silence")
	}
}
