package backup_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/backup"
	"bailiwick/shared/fault"
)

var key = bytes.Repeat([]byte{7}, 32)

func about() backup.Info {
	return backup.Info{Program: "bailiwick-control v1.2.0", Installation: "x.test", Zone: "emea", Group: "store/emea", Node: "emea-1", TakenAt: time.Unix(1e9, 0).UTC(), Entry: 9, Epoch: 2, Index: 7, State: 4}
}

func file(t *testing.T, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := backup.Write(&b, key, about(), func(w io.Writer) error { _, err := w.Write(body); return err }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(b, key []byte) (backup.Info, []byte, error) {
	info, r, err := backup.Open(bytes.NewReader(b), key)
	if err != nil {
		return info, nil, err
	}
	body, err := io.ReadAll(r)
	return info, body, err
}

func TestWrite_ReadsBack(t *testing.T) {
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 200_000} {
		want := bytes.Repeat([]byte("secret marker "), size/14+1)[:size]
		f := file(t, want)
		info, got, err := read(f, key)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		if info.Group != "store/emea" || info.Index != 7 {
			t.Errorf("info: got %+v", info)
		}
		if size > 20 && bytes.Contains(f, []byte("secret marker")) {
			t.Error("the body lies open in the file")
		}
	}
}

func TestOpen_EveryChangedOrMissingByteIsNoticed(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789"), 7000) // two parts
	whole := file(t, want)
	head := bytes.IndexByte(whole, '}') + 5
	step := 1
	for i := 0; i < len(whole); i += step {
		if i > head+40 {
			step = 997
		}
		b := bytes.Clone(whole)
		b[i] ^= 0x10
		if _, _, err := read(b, key); err == nil {
			t.Errorf("byte %d changed: got no error", i)
		}
		if _, _, err := read(whole[:i], key); err == nil {
			t.Errorf("cut at %d: got no error", i)
		}
	}
	if _, _, err := read(append(bytes.Clone(whole), 0), key); fault.ReasonOf(err) != backup.ReasonDamaged {
		t.Errorf("a byte more: got %v", err)
	}
}

// Parts of one file cannot be moved, left out or repeated, nor put into another.
func TestOpen_PartsKeepTheirPlace(t *testing.T) {
	body := bytes.Repeat([]byte{1}, 3*64<<10)
	a, b := file(t, body), file(t, body)
	begin := bytes.IndexByte(a, '}') + 5
	const part = 4 + 64<<10 + 16
	p := func(f []byte, i int) []byte { return f[begin+i*part : begin+(i+1)*part] }
	for name, f := range map[string][]byte{
		"swapped":      bytes.Join([][]byte{a[:begin], p(a, 1), p(a, 0), a[begin+2*part:]}, nil),
		"left out":     bytes.Join([][]byte{a[:begin], p(a, 1), a[begin+2*part:]}, nil),
		"twice":        bytes.Join([][]byte{a[:begin], p(a, 0), p(a, 0), a[begin+2*part:]}, nil),
		"of another":   bytes.Join([][]byte{a[:begin], p(b, 0), a[begin+part:]}, nil),
		"ends earlier": a[:begin+2*part],
	} {
		if _, _, err := read(f, key); fault.ReasonOf(err) != backup.ReasonDamaged {
			t.Errorf("%s: got %v, want %s", name, err, backup.ReasonDamaged)
		}
	}
}

func TestOpen_Refuses(t *testing.T) {
	f := file(t, []byte("body"))
	if _, _, err := read(f, bytes.Repeat([]byte{8}, 32)); fault.ReasonOf(err) != backup.ReasonDamaged || !strings.Contains(err.Error(), "another zone's key") {
		t.Errorf("another zone's key: got %v", err)
	}
	if _, _, err := read([]byte("hello, this is a letter"), key); fault.ReasonOf(err) != backup.ReasonNotABackup {
		t.Errorf("a letter: got %v", err)
	}
	if info, err := backup.ReadInfo(bytes.NewReader(f)); err != nil || info.Zone != "emea" {
		t.Errorf("header without a key: got %+v, %v", info, err)
	}
}
