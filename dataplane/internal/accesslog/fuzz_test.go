package accesslog

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
)

// Whatever a client sends that gets into an entry: a line is one line of JSON, says no more than its bound, and keeps names as
// they are.
func FuzzLine(f *testing.F) {
	f.Add("orders", "GET", "acme", int64(5))
	f.Add("a\"\n\\", "G\x00T", "\xff\u2028", int64(-1))
	f.Fuzz(func(t *testing.T, api, method, customer string, n int64) {
		e := &Entry{At: time.Unix(n%(1<<33), 0), API: api, Method: method, Customer: customer, Route: api, Plan: method, Key: customer, Status: int(n), In: n, Out: -n, Took: time.Duration(n), Cached: n > 0, Relayed: n < 0}
		line := appendLine(nil, e)
		if len(line) > lineMost || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("a line of %d bytes: %q", len(line), line)
		}
		var got struct {
			API    string `json:"api"`
			Method string `json:"method"`
			Status int    `json:"status"`
		}
		d := json.NewDecoder(bytes.NewReader(line))
		if err := d.Decode(&got); err != nil || got.Status != int(n) {
			t.Fatalf("%q: %v", line, err)
		}
		for _, pair := range [][2]string{{got.API, api}, {got.Method, method}} {
			plain := true
			for i := range len(pair[1]) {
				c := pair[1][i]
				plain = plain && c >= ' ' && c < 0x7f && c != '"' && c != '\\'
			}
			if plain && len(pair[1]) <= 128 && pair[0] != pair[1] {
				t.Fatalf("%q became %q", pair[1], pair[0])
			}
		}
	})
}
