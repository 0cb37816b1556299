package adminapi

import (
	"fmt"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

// How callers show who they are, and what their requests cost, as messages and as what is stored.

func authFromProto(v *adminv1.Authentication) (*model.Auth, error) {
	if v == nil {
		return nil, nil
	}
	out := &model.Auth{KeyHeader: v.GetKeyHeader(), KeyQuery: v.GetKeyQuery(), ClientCertificates: v.GetClientCertificates(), Identity: v.GetIdentity()}
	for i, is := range v.GetIssuers() {
		leeway, err := duration(is.GetLeeway(), fmt.Sprintf("spec.auth.issuers[%d].leeway", i))
		if err != nil {
			return nil, err
		}
		out.Issuers = append(out.Issuers, model.Issuer{Issuer: is.GetIssuer(), Audiences: is.GetAudiences(), Algorithms: is.GetAlgorithms(),
			JWKSURL: is.GetJwksUrl(), JWKS: is.GetJwks(), Claim: is.GetClaim(), Leeway: leeway})
	}
	return out, nil
}

func authToProto(v *model.Auth) *adminv1.Authentication {
	if v == nil {
		return nil
	}
	out := &adminv1.Authentication{KeyHeader: v.KeyHeader, KeyQuery: v.KeyQuery, ClientCertificates: v.ClientCertificates, Identity: v.Identity}
	for _, is := range v.Issuers {
		out.Issuers = append(out.Issuers, &adminv1.Issuer{Issuer: is.Issuer, Audiences: is.Audiences, Algorithms: is.Algorithms,
			JwksUrl: is.JWKSURL, Jwks: is.JWKS, Claim: is.Claim, Leeway: showDuration(is.Leeway)})
	}
	return out
}

func unitsFromProto(v *adminv1.Units) *model.Units {
	if v == nil {
		return nil
	}
	return &model.Units{Header: v.GetHeader(), PerBytes: v.GetPerBytes(), PerMessages: v.GetPerMessages(), Most: v.GetMost(), GraphQL: v.GetGraphql()}
}

func unitsToProto(v *model.Units) *adminv1.Units {
	if v == nil {
		return nil
	}
	return &adminv1.Units{Header: v.Header, PerBytes: v.PerBytes, PerMessages: v.PerMessages, Most: v.Most, Graphql: v.GraphQL}
}
