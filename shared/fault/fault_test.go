package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"bailiwick/shared/fault"
)

func TestNew_WrapsItsCause(t *testing.T) {
	e := fault.New(fault.Unavailable, "STORE_AWAY", "read zone store of %s: %w", "emea", io.ErrUnexpectedEOF)
	if got, want := e.Error(), "read zone store of emea: unexpected EOF"; got != want {
		t.Errorf("message: got %q, want %q", got, want)
	}
	if !errors.Is(e, io.ErrUnexpectedEOF) {
		t.Error("errors.Is does not find the cause")
	}
	both := fault.New(fault.Internal, "TWO", "%w and %w", io.EOF, io.ErrClosedPipe)
	if !errors.Is(both, io.EOF) || !errors.Is(both, io.ErrClosedPipe) {
		t.Error("two causes: one is lost")
	}
}

func TestKindOf_LooksThroughWrapping(t *testing.T) {
	inner := fault.New(fault.NotFound, "REGION_UNKNOWN", "region %q is unknown", "eu-sud")
	tests := []struct {
		name   string
		err    error
		kind   fault.Kind
		reason string
	}{
		{"bare", inner, fault.NotFound, "REGION_UNKNOWN"},
		{"wrapped", fmt.Errorf("apply policy: %w", inner), fault.NotFound, "REGION_UNKNOWN"},
		{"outer fault wins", fault.New(fault.Invalid, "BAD", "x: %w", inner), fault.Invalid, "BAD"},
		{"foreign", io.EOF, fault.Internal, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.KindOf(tt.err); got != tt.kind {
				t.Errorf("kind: got %v, want %v", got, tt.kind)
			}
			if got := fault.ReasonOf(tt.err); got != tt.reason {
				t.Errorf("reason: got %q, want %q", got, tt.reason)
			}
		})
	}
}

func TestError_WithAndAtCopy(t *testing.T) {
	base := fault.New(fault.WrongZone, "WRONG_ZONE", "customer rests in us")
	got := base.With("zone", "us").With("admin", "https://127.0.0.1:1").At("spec.zone")
	if len(base.Meta) != 0 || base.Field != "" {
		t.Errorf("base changed: %+v", base)
	}
	if got.Meta["zone"] != "us" || got.Meta["admin"] == "" || got.Field != "spec.zone" {
		t.Errorf("got %+v, want both meta values and the field", got)
	}
}

func TestKind_NamesRoundTrip(t *testing.T) {
	for k := fault.Internal; k <= fault.Unimplemented; k++ {
		got, ok := fault.ParseKind(k.String())
		if !ok || got != k {
			t.Errorf("ParseKind(%q): got %v %v, want %v", k.String(), got, ok, k)
		}
	}
	if _, ok := fault.ParseKind("kind(99)"); ok {
		t.Error("ParseKind accepts an unknown name")
	}
}
