// Package overlay builds programs from edited sources by go's -overlay: the go tool reads an edited copy instead of the
// file, so that the code itself holds no switch. It owns the files that it writes below the directory given to it, and
// changes no other. Its functions may be called at once, with different directories.
package overlay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Edit replaces Old, which stands in File exactly once, by New. File is relative to the root, or absolute. Where Old
// is empty, File does not exist yet and New is all of it.
type Edit struct{ File, Old, New string }

// Write writes the edited copies and the overlay over them into dir, and returns the overlay's path.
func Write(root, dir string, edits []Edit) (string, error) {
	edited := map[string]string{}
	for _, e := range edits {
		path := filepath.FromSlash(e.File)
		if !filepath.IsAbs(path) {
			path = filepath.Join(root, path)
		}
		text, ok := edited[path]
		if e.Old == "" {
			if _, err := os.Stat(path); err == nil || ok {
				return "", fmt.Errorf("%s exists already", e.File)
			}
			edited[path] = e.New
			continue
		}
		if !ok {
			raw, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			text = string(raw)
		}
		if n := strings.Count(text, e.Old); n != 1 {
			return "", fmt.Errorf("%s has %d times the text that is changed, want once; the code moved on, move the edit with it: %q", e.File, n, e.Old)
		}
		edited[path] = strings.Replace(text, e.Old, e.New, 1)
	}
	replace := map[string]string{}
	for path, text := range edited {
		copied := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(path, root), string(filepath.Separator), "_"))
		if err := os.WriteFile(copied, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[path] = copied
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, raw, 0o600)
}
