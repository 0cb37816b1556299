package durable_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"

	"bailiwick/shared/durable"
	"bailiwick/shared/durable/durabletest"
)

// A log of which the disk has kept something else: it opens with the records that it gives again at the next start, each where it
// lies, or it is refused and left as it is.
func FuzzLog(f *testing.F) {
	h := durable.Header{Magic: "bwtest", Version: 2, Program: "test"}
	whole := func(records ...string) []byte {
		fsys := durabletest.New()
		l, _, err := durable.OpenLog(fsys, "log", h, nil)
		if err != nil {
			f.Fatal(err)
		}
		for _, r := range records {
			if err := l.Append([]byte(r)); err != nil {
				f.Fatal(err)
			}
		}
		if err := errors.Join(l.Sync(), l.Close()); err != nil {
			f.Fatal(err)
		}
		b, err := durable.ReadFile(fsys, "log", 1<<20)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(whole("a", "", "ccc"))
	f.Add(whole("a")[:20])
	f.Add(append(whole("a"), make([]byte, 100)...))
	f.Add(append(whole("a"), binary.LittleEndian.AppendUint32(nil, 1<<31)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := durabletest.New()
		if err := durable.WriteFileAtomic(fsys, "log", data, durable.FilePerm); err != nil {
			t.Fatal(err)
		}
		open := func() (records [][]byte, offs []int64, st durable.LogState, l *durable.Log, err error) {
			l, st, err = durable.OpenLog(fsys, "log", h, func(off int64, p []byte) error {
				records, offs = append(records, bytes.Clone(p)), append(offs, off)
				return nil
			})
			return records, offs, st, l, err
		}
		first, offs, st, l, err := open()
		if err != nil {
			if !errors.Is(err, durable.ErrCorrupt) && !errors.Is(err, durable.ErrNewer) {
				t.Fatal(err)
			}
			if left, err := durable.ReadFile(fsys, "log", 1<<30); err != nil || !bytes.Equal(left, data) {
				t.Fatalf("a log that is refused was changed: %v", err)
			}
			return
		}
		if st.Records != len(first) || l.Size()+st.Torn != int64(len(data)) {
			t.Fatalf("%d records of %d, %d bytes and %d torn of %d", st.Records, len(first), l.Size(), st.Torn, len(data))
		}
		for i, off := range offs {
			if p, err := l.Record(off); err != nil || !bytes.Equal(p, first[i]) {
				t.Fatalf("record %d at %d: %q, %v, want %q", i, off, p, err, first[i])
			}
		}
		if err := errors.Join(l.Append([]byte("more")), l.Close()); err != nil {
			t.Fatal(err)
		}
		second, _, st, l, err := open()
		if err != nil || st.Torn != 0 || len(second) != len(first)+1 || string(second[len(first)]) != "more" {
			t.Fatalf("at the next start: %d records, %d bytes torn, %v, want %d", len(second), st.Torn, err, len(first)+1)
		}
		for i := range first {
			if !bytes.Equal(first[i], second[i]) {
				t.Fatalf("record %d is %q, at the next start %q", i, first[i], second[i])
			}
		}
		l.Close()
	})
}

// A sealed file is read as what was written, or not at all.
func FuzzSealed(f *testing.F) {
	h := durable.Header{Magic: "bwtest", Version: 2, Program: "test"}
	fsys := durabletest.New()
	if err := durable.WriteSealed(fsys, "sealed", h, []byte("blob")); err != nil {
		f.Fatal(err)
	}
	good, err := durable.ReadFile(fsys, "sealed", 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte("bwtest\x00\x00\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := durabletest.New()
		if err := durable.WriteFileAtomic(fsys, "sealed", data, durable.FilePerm); err != nil {
			t.Fatal(err)
		}
		blob, found, err := durable.ReadSealed(fsys, "sealed", h, 1<<20)
		if err != nil {
			if blob != nil || !errors.Is(err, durable.ErrCorrupt) && !errors.Is(err, durable.ErrNewer) && !errors.Is(err, fs.ErrNotExist) && len(data) <= 1<<20 {
				t.Fatalf("%d bytes beside %v", len(blob), err)
			}
			return
		}
		if err := durable.WriteSealed(fsys, "again", found, blob); err != nil {
			t.Fatal(err)
		}
		if again, err := durable.ReadFile(fsys, "again", 1<<20); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x was read as %q, which is written as %x, %v", data, blob, again, err)
		}
	})
}
