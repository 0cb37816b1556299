package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// archive is a set of files that becomes the same bytes whatever folder they came from, and whenever they were made.
type archive struct{ entries []entry }

type entry struct {
	name string // with slashes, below the archive's one folder
	body []byte
	runs bool // may be executed
}

// add takes a file, or all files below a folder, under name. Their modes and dates stay behind: git and umask
// decide on those, and differ from clone to clone.
func (a *archive) add(from, name string, runs bool) error {
	return filepath.WalkDir(from, func(at string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a folder", at)
		}
		below, err := filepath.Rel(from, at)
		if err != nil {
			return err
		}
		body, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		a.entries = append(a.entries, entry{path.Join(name, filepath.ToSlash(below)), body, runs})
		return nil
	})
}

func (a *archive) text(name, body string) {
	a.entries = append(a.entries, entry{name, []byte(body), false})
}

// write puts the files, sorted, into one folder of a tar.gz; all carry the date at.
func (a *archive) write(w io.Writer, folder string, at time.Time) error {
	sorted := slices.Clone(a.entries)
	slices.SortFunc(sorted, func(x, y entry) int { return strings.Compare(x.name, y.name) })
	zipped, err := gzip.NewWriterLevel(w, gzip.BestCompression) // its header names neither file nor date
	if err != nil {
		return err
	}
	tape := tar.NewWriter(zipped)
	for i, e := range sorted {
		if i > 0 && e.name == sorted[i-1].name {
			return fmt.Errorf("archive %s: %s is there twice", folder, e.name)
		}
		mode := int64(0o644)
		if e.runs {
			mode = 0o755
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(folder, e.name), Size: int64(len(e.body)), Mode: mode, ModTime: at.UTC().Truncate(time.Second), Format: tar.FormatUSTAR}
		if err := tape.WriteHeader(header); err != nil {
			return fmt.Errorf("archive %s: %w", e.name, err)
		}
		if _, err := tape.Write(e.body); err != nil {
			return fmt.Errorf("archive %s: %w", e.name, err)
		}
	}
	return errors.Join(tape.Close(), zipped.Close())
}
