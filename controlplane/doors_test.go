package controlplane

import (
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// What an edge says of itself goes from the catalog into answers to strangers: it is checked before it is written.
func TestDoorsOf(t *testing.T) {
	for _, c := range []struct {
		addresses string
		port      uint32
		want      string // "": refused
	}{
		{"203.0.113.7,2001:db8::7", 443, "203.0.113.7,2001:db8::7"},
		{"::ffff:203.0.113.7", 443, "203.0.113.7"},
		{"203.0.113.7", 0, ""}, {"203.0.113.7", 65536, ""}, {"0.0.0.0", 443, ""}, {"::", 443, ""}, {"224.0.0.1", 443, ""},
		{"fe80::1%eth0", 443, ""}, {"host.example.test", 443, ""}, {strings.Repeat("203.0.113.7,", 8) + "203.0.113.7", 443, ""},
	} {
		got, err := doorsOf(&syncv1.Doors{Addresses: strings.Split(c.addresses, ","), HttpsPort: c.port, Dns: true})
		if (err != nil) != (c.want == "") || err == nil && (strings.Join(got.Addresses, ",") != c.want || !got.DNS || got.HTTPSPort != int(c.port)) {
			t.Errorf("%s port %d: %+v, %v; want %q", c.addresses, c.port, got, err, c.want)
		}
	}
	if got, err := doorsOf(&syncv1.Doors{}); got != nil || err != nil {
		t.Errorf("an edge that clients are not led to: %v, %v; want none", got, err)
	}
	a := &model.Doors{Addresses: []string{"203.0.113.7"}, HTTPSPort: 443}
	for _, b := range []*model.Doors{nil, {Addresses: []string{"203.0.113.8"}, HTTPSPort: 443}, {Addresses: a.Addresses, HTTPSPort: 444}, {Addresses: a.Addresses, HTTPSPort: 443, DNS: true}} {
		if sameDoors(a, b) || sameDoors(b, a) {
			t.Errorf("%+v is the same as %+v", a, b)
		}
	}
}
