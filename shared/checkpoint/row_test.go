package checkpoint_test

import (
	"bytes"
	"testing"
	"time"

	"bailiwick/shared/checkpoint"
)

func TestRow_ReadsAsItWasWritten(t *testing.T) {
	for _, r := range []checkpoint.Row{
		{At: time.UnixMicro(1_800_000_000_123_456).UTC(), RequestID: "0190f5c2-0000-7000-8000-000000000001", Grant: "g", From: "eu-west", To: "eu-central"},
		{At: time.UnixMicro(0).UTC()},
	} {
		p := r.Append(nil)
		got, err := checkpoint.ParseRow(p)
		if err != nil || got != r {
			t.Errorf("got %+v %v, want %+v", got, err, r)
		}
		for cut := range p {
			if _, err := checkpoint.ParseRow(p[:cut]); err == nil {
				t.Errorf("cut to %d of %d bytes it reads", cut, len(p))
			}
		}
		if _, err := checkpoint.ParseRow(append(bytes.Clone(p), 0)); err == nil {
			t.Error("with a byte behind it it reads")
		}
	}
}

// Any other order, number or cutting of rows, or another beginning, is another digest.
func TestDigest_BindsRowsAndPlace(t *testing.T) {
	sum := func(prev string, rows ...string) string {
		d := checkpoint.NewDigest()
		for _, r := range rows {
			d.Add([]byte(r))
		}
		return string(d.Sum([]byte(prev)))
	}
	seen := map[string]int{}
	for i, s := range []string{sum("", "a", "b"), sum("", "b", "a"), sum("", "ab"), sum("", "a", "b", ""), sum("", "a"), sum(""), sum("p", "a", "b"), sum("p")} {
		if j, ok := seen[s]; ok {
			t.Errorf("cases %d and %d have one digest", j, i)
		}
		seen[s] = i
	}
	if sum("p", "a", "b") != sum("p", "a", "b") {
		t.Error("the same rows have two digests")
	}
}

func FuzzParseRow(f *testing.F) {
	f.Add(checkpoint.Row{At: time.UnixMicro(1).UTC(), RequestID: "r", Grant: "g", From: "a", To: "b"}.Append(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := checkpoint.ParseRow(p); err == nil && !bytes.Equal(r.Append(nil), p) {
			t.Errorf("%x reads as %+v, which is written otherwise", p, r)
		}
	})
}
