package scenario_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"bailiwick/e2e/harness"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/apikey"
)

const marker = "zz-residency-marker"

// residency: what is of emea rests and travels in emea only. The same search that finds nothing in us finds
// everything in every place of emea.
func residency(t *testing.T, s *harness.Sandbox) {
	s.MustCLI("emea", "apply", "-f", writeFile(t, "marker.yaml", "kind: Customer\nname: "+marker+"\nspec: {zone: emea, display_name: Zymurgy Markings, subscriptions: [{plan: unlimited}]}\n"))
	texts := map[string]string{} // key id → text
	keys := s.KeyService(s.AdminURLs("emea")[0])
	for range 100 {
		id, text, err := harness.CreateKey(keys, marker, "unlimited")
		if err != nil {
			t.Fatal(err)
		}
		texts[id] = text
	}
	var last string
	for _, text := range texts {
		last = text
	}
	within(t, time.Now(), 5*time.Second, "the keys work", func() error { return ok(s.Get("eu-west", last), "eu-west") })

	emea, us := joinEdge(t, s, "emea", "eu-west", "probe-emea"), joinEdge(t, s, "us", "us-east", "probe-us")
	pepper := emea.join.GetPepper()
	if len(pepper) != apikey.PepperLen {
		t.Fatalf("join told a pepper of %d bytes, want %d", len(pepper), apikey.PepperLen)
	}
	// What may be nowhere outside emea. Each is looked for as the bytes and as hexadecimal text.
	personal := [][]byte{[]byte(marker), []byte("Zymurgy Markings")}
	digests := map[string][]byte{}
	for id, text := range texts {
		d := apikey.Sum(pepper, text)
		digests[id] = d[:]
		personal = append(personal, []byte(id))
		personal = append(personal, forms(d[:])...)
	}
	// found tells whether something holds the marker and every key: the positive control.
	found := func(b []byte) error {
		if !bytes.Contains(b, []byte(marker)) {
			return fmt.Errorf("%s is not there", marker)
		}
		for id, d := range digests {
			if !slices.ContainsFunc(forms(d), func(f []byte) bool { return bytes.Contains(b, f) }) {
				return fmt.Errorf("the digest of key %s is not there", id)
			}
			if !bytes.Contains(b, []byte(id)) {
				return fmt.Errorf("key %s is not there", id)
			}
		}
		return nil
	}

	// The streams, each recorded until what must be in it is there.
	recorded := emea.record(t, 20*time.Second, func(b []byte) bool { return found(b) == nil })
	if err := found(recorded); err != nil {
		t.Errorf("positive control: the stream of an emea edge: %v", err)
	}
	usKey, _ := s.NewKey("us", "stark", "unlimited")
	abroad := us.record(t, 10*time.Second, func(b []byte) bool { return bytes.Contains(b, []byte(usKey)) })
	if !bytes.Contains(abroad, []byte(usKey)) {
		t.Error("positive control: the stream of a us edge lacks a us key")
	}
	if p := newFinder(personal).first(abroad); p != nil {
		t.Errorf("%q is in the stream of a us edge", show(p))
	}

	// The disks.
	holds := func(name string) {
		s.Eventually(10*time.Second, "positive control: "+name+" holds the marker and the keys", func() error {
			var all bytes.Buffer
			if err := eachFile(filepath.Join(s.Dir, name), func(_ string, b []byte) { all.Write(b) }); err != nil {
				return err
			}
			return found(all.Bytes())
		})
	}
	for _, c := range s.Controls {
		switch {
		case c.Zone != "emea":
			absent(t, filepath.Join(s.Dir, c.Name), personal)
		case len(s.Stores) == 0:
			holds(c.Name)
		}
	}
	for _, m := range s.Stores { // where there are etcds, the zone's hold what it keeps, and no other one does
		if m.Cluster == "emea" {
			holds(m.Name)
			continue
		}
		absent(t, filepath.Join(s.Dir, m.Name), personal)
	}
	for _, e := range s.Edges {
		if e.Zone != "emea" {
			absent(t, filepath.Join(s.Dir, e.Name), personal)
			absent(t, filepath.Join(s.Dir, "logs", e.Name+".log"), personal)
		}
	}
	for _, name := range s.ControlsOf("us") {
		absent(t, filepath.Join(s.Dir, "logs", name+".log"), personal)
	}

	// The texts of keys rest nowhere at all, and the pepper nowhere but where an edge keeps its own identity.
	var secrets [][]byte
	for id, text := range texts {
		_, rest, _ := strings.Cut(text, id+"_")
		secrets = append(secrets, []byte(text), []byte(rest))
	}
	absent(t, s.Dir, secrets)
	peppers := append(forms(pepper), []byte(base64.StdEncoding.EncodeToString(pepper)), []byte(base64.RawURLEncoding.EncodeToString(pepper)))
	for _, c := range s.Controls {
		absent(t, filepath.Join(s.Dir, c.Name), peppers)
	}
	absent(t, filepath.Join(s.Dir, "logs"), peppers)
	for _, e := range s.Edges {
		if e.Zone != "emea" {
			absent(t, filepath.Join(s.Dir, e.Name), peppers)
		}
	}
}

// forms of bytes: as they are, and as hexadecimal text.
func forms(b []byte) [][]byte { return [][]byte{b, []byte(hex.EncodeToString(b))} }

func show(b []byte) string {
	if bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r > '~' }) {
		return hex.EncodeToString(b)
	}
	return string(b)
}

// absent fails for each of needles in a file or directory; that it reads anything at all is part of the check.
func absent(t *testing.T, root string, needles [][]byte) {
	t.Helper()
	files, find := 0, newFinder(needles)
	err := eachFile(root, func(path string, b []byte) {
		files++
		if n := find.first(b); n != nil {
			t.Errorf("%q is in %s", show(n), path)
		}
	})
	if err != nil || files == 0 {
		t.Errorf("search of %s: %d files, %v", root, files, err)
	}
}

// finder looks for many needles of at least eight bytes in one pass.
type finder struct {
	pairs   [1 << 16]bool // by the first two bytes
	needles map[[8]byte][][]byte
}

func newFinder(needles [][]byte) *finder {
	f := &finder{needles: map[[8]byte][][]byte{}}
	for _, n := range needles {
		f.pairs[uint16(n[0])<<8|uint16(n[1])] = true
		f.needles[[8]byte(n)] = append(f.needles[[8]byte(n)], n)
	}
	return f
}

// first is a needle that is in b; nil if none is.
func (f *finder) first(b []byte) []byte {
	for i := 0; i+8 <= len(b); i++ {
		if !f.pairs[uint16(b[i])<<8|uint16(b[i+1])] {
			continue
		}
		for _, n := range f.needles[[8]byte(b[i:])] {
			if bytes.HasPrefix(b[i:], n) {
				return n
			}
		}
	}
	return nil
}

// eachFile visits the files below root: as they are, and each zstd stream inside them decompressed.
func eachFile(root string, visit func(path string, content []byte)) error {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return err
	}
	defer decoder.Close()
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			if os.IsNotExist(err) {
				return nil // the process that owns it removed it meanwhile
			}
			return err
		}
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		visit(path, content)
		magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
		for at := bytes.Index(content, magic); at >= 0; {
			// What is no stream after all, or is cut short, still yields what it holds up to there.
			if plain := inflate(decoder, content[at:]); len(plain) > 0 {
				visit(path+" (decompressed)", plain)
			}
			next := bytes.Index(content[at+1:], magic)
			if next < 0 {
				break
			}
			at += 1 + next
		}
		return nil
	})
}

func inflate(decoder *zstd.Decoder, stream []byte) []byte {
	if err := decoder.Reset(bytes.NewReader(stream)); err != nil {
		return nil
	}
	var plain bytes.Buffer
	_, _ = decoder.WriteTo(&plain)
	return plain.Bytes()
}

// The scanner itself: that it sees into a compressed file, else every absence above proves nothing.
func TestEachFile_SeesIntoSnapshots(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	hidden := bytes.Repeat([]byte("pad "+marker+" pad "), 50)
	file := append([]byte("bailiwick-snap\x01"), encoder.EncodeAll(hidden, nil)...)
	dir := t.TempDir()
	if bytes.Count(file, []byte(marker)) > 1 {
		t.Fatal("the text was not compressed")
	}
	if err := os.WriteFile(filepath.Join(dir, "state.bin"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	seen, find := 0, newFinder([][]byte{[]byte("something else"), []byte(marker)})
	err = eachFile(dir, func(path string, b []byte) {
		if strings.Contains(path, "decompressed") && string(find.first(b)) == marker {
			seen = bytes.Count(b, []byte(marker))
		}
	})
	if err != nil || seen != 50 {
		t.Errorf("found the text %d times, %v, want 50", seen, err)
	}
}

func marshal(m *syncv1.SubscribeResponse) ([]byte, error) { return proto.Marshal(m) }

// unmarshalUpdate is the table update in a message; nil if it is something else.
func unmarshalUpdate(m *syncv1.SubscribeResponse) (*syncv1.TableUpdate, error) {
	if m.GetTable() == nil {
		return nil, nil
	}
	update := &syncv1.TableUpdate{}
	if err := proto.Unmarshal(m.GetTable().GetPayload(), update); err != nil {
		return nil, fmt.Errorf("table update does not decode: %w", err)
	}
	return update, nil
}
