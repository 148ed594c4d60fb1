// An OpenID Connect provider: npm's oidc-provider, on 127.0.0.1, for as long as its input is open.
//
// The first line of input is its configuration, as JSON, and any other changes parts of that: of
// `users` and `redirect_uris` only. The one line of output is the port that it listens on.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

function newKey(alg) {
  const { privateKey } =
    alg === 'ES256'
      ? generateKeyPairSync('ec', { namedCurve: 'P-256' })
      : generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomUUID() };
}

async function start(config) {
  const { default: Provider } = await import(config.module);
  const server = createServer();
  await new Promise((resolve) => server.listen(config.port, '127.0.0.1', resolve));
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [
      {
        client_id: config.client_id,
        ...(config.client_secret
          ? { client_secret: config.client_secret }
          : { token_endpoint_auth_method: 'none' }),
        redirect_uris: config.redirect_uris,
        grant_types: ['authorization_code'],
        response_types: ['code'],
        id_token_signed_response_alg: config.algorithm,
      },
    ],
    jwks: { keys: [newKey(config.algorithm)] },
    cookies: { keys: [randomUUID()] },
    pkce: { required: () => true },
    claims: { email: ['email', 'email_verified'], profile: config.profile },
    conformIdTokenClaims: !config.claims_in_id_token,
    ttl: { AccessToken: config.token_seconds },
    features: {
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => false,
        getResourceServerInfo: (_, audience) => ({
          scope: '',
          audience,
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: config.algorithm } },
        }),
      },
    },
    findAccount: (_, login) =>
      config.users[login] && {
        accountId: login,
        claims: () => ({ sub: login, ...config.users[login] }),
      },
  });
  // a service that has chosen its port later is as good as one that was known before
  provider.Client.prototype.redirectUriAllowed = (uri) => config.redirect_uris.includes(uri);
  server.on('request', provider.callback());
  console.log(port);
}

let config;
for await (const line of createInterface({ input: process.stdin })) {
  const said = JSON.parse(line);
  if (config) {
    Object.assign(config, said);
  } else {
    config = said;
    await start(config);
  }
}
process.exit();
