package token

import (
	"encoding/json"
	"math"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"bailiwick/shared/table"
)

// claims are what a token says. Those that it must have are pointers: absence reads as absence.
type claims struct {
	Issuer   string
	audience []string
	expires  *float64
	early    *float64
	issued   *float64
	scopes   []string
	all      map[string]json.RawMessage
}

// UnmarshalJSON takes names as they are written: encoding/json would take ISS for iss, and another reader the other.
func (c *claims) UnmarshalJSON(data []byte) error {
	if err := json.Unmarshal(data, &c.all); err != nil {
		return err
	}
	get := func(name string, into any) error {
		if raw, ok := c.all[name]; ok && string(raw) != "null" {
			return json.Unmarshal(raw, into)
		}
		return nil
	}
	for name, into := range map[string]any{"iss": &c.Issuer, "exp": &c.expires, "nbf": &c.early, "iat": &c.issued} {
		if err := get(name, into); err != nil {
			return err
		}
	}
	if err := get("aud", &c.audience); err != nil {
		var one string
		if err := get("aud", &one); err != nil {
			return err
		}
		c.audience = []string{one}
	}
	var text string
	if get("scope", &text) == nil { // RFC 8693; some write scp, as a list
		c.scopes = strings.Fields(text)
	}
	if len(c.scopes) == 0 && get("scp", &c.scopes) != nil && get("scp", &text) == nil {
		c.scopes = strings.Fields(text)
	}
	return nil
}

// judge holds what was signed against what the issuer's tokens must say here.
func (c *claims) judge(issuer *table.Issuer, header jose.Header, v *verified) (*verified, error) {
	if typ, ok := header.ExtraHeaders["typ"].(string); ok && !strings.EqualFold(typ, "JWT") && !strings.EqualFold(typ, "at+jwt") && !strings.EqualFold(typ, "application/at+jwt") {
		return nil, ErrMalformed // signed for another purpose, such as a logout
	}
	if c.expires == nil {
		return nil, ErrEndless // a token for ever is none
	}
	leeway := issuer.Leeway.Seconds()
	v.until, v.from = unix(*c.expires+leeway), math.MinInt64
	for _, t := range []*float64{c.early, c.issued} {
		if t != nil {
			v.from = max(v.from, unix(*t-leeway))
		}
	}
	if !slices.ContainsFunc(c.audience, func(a string) bool { return slices.Contains(issuer.Audiences, a) }) {
		return nil, ErrAudience
	}
	var subject string
	if json.Unmarshal(c.all[issuer.Claim], &subject) != nil || subject == "" || len(subject) > maxSubject || strings.ContainsAny(subject, "\x00\n") {
		return nil, ErrSubject
	}
	v.issuer, v.value = issuer.Issuer, subject
	for _, s := range c.scopes {
		if len(v.scopes)+len(s) > maxToken || s == "" || strings.ContainsAny(s, " \t\r\n") {
			continue
		}
		if v.scopes != "" {
			v.scopes += " "
		}
		v.scopes += s
	}
	return v, nil
}

// unix rounds towards the past, and is defined for every number.
func unix(s float64) int64 {
	switch {
	case !(s > -1e15):
		return -1e15
	case s > 1e15:
		return 1e15
	}
	return int64(math.Floor(s))
}
