package apikey

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// ErrSecret is what marshalling a Text or a Digest answers: an error rather
// than a placeholder, so that nothing is ever stored as "[redacted]" and lost.
var ErrSecret = errors.New("marshal key material: a secret has no text or JSON form")

// Text is the full text of a key. It cannot be printed, logged, marshalled or
// compared; Reveal is the one way out and easy to search for.
type Text struct {
	_ [0]func() // not comparable
	// A pointer: fmt calls no methods on unexported fields of a caller's
	// struct and would print a string; it prints the address of a pointer.
	s *string
}

// Conceal wraps a key text that came from outside (a file, a prompt).
func Conceal(s string) Text { return Text{s: &s} }

// Reveal is the key text: for the one answer that shows it, and nothing else.
func (t Text) Reveal() string {
	if t.s == nil {
		return ""
	}
	return *t.s
}

// IsZero says whether there is no key.
func (t Text) IsZero() bool { return t.s == nil || *t.s == "" }

func (Text) String() string               { return redacted }
func (Text) GoString() string             { return redacted }
func (Text) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (Text) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Text) MarshalText() ([]byte, error) { return nil, ErrSecret }
func (Text) MarshalJSON() ([]byte, error) { return nil, ErrSecret }

// Digest is what rests on disk of a key: HMAC-SHA-256 under the zone's pepper.
// Its bytes (d[:]) go into sealed messages by hand; printing it redacts. As an
// unexported field of a printed struct fmt still shows it: do not print those.
type Digest [32]byte

// IsZero says whether no digest was ever put here.
func (d Digest) IsZero() bool { return d == Digest{} }

func (Digest) String() string               { return redacted }
func (Digest) GoString() string             { return redacted }
func (Digest) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) }
func (Digest) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Digest) MarshalText() ([]byte, error) { return nil, ErrSecret }
func (Digest) MarshalJSON() ([]byte, error) { return nil, ErrSecret }
